"""The header that links a message to its cell."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_statemanager.integration.binding import HEADER, Binding, binding_of
from celery_statemanager.records import JobKey, JobRef

NAMES = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=200)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(NAMES, st.none() | NAMES, st.integers(-1, 10**7), NAMES, st.integers(0, 100))
def test_a_binding_is_read_from_a_request_and_from_its_headers(
    job_id: str, run_token: str | None, row: int, tag: str, stage: int
) -> None:
    binding = Binding(JobRef(JobKey(job_id, run_token), "0f"), row, tag, stage)
    assert binding_of({HEADER: binding.to_header()}) == binding
    assert binding_of({"headers": {HEADER: binding.to_header()}}) == binding
    assert binding.celery_task_id.isascii() or row < 0  # then the tag is the name of a latch


@pytest.mark.parametrize(
    "value",
    [
        "",
        "x",
        "[]",
        "[1,2,3,4,5,6]",
        '["j",null,"i",0,"t",0,"more"]',
        '["j",[],"i",0,"t",0]',
        '["j",null,"i",0,"t",0,0,0,null,false,1,[60.0]]',
        '["j",null,"i",0,"t",0,0,0,null,false,1,null,null]',
        "null",
        "[" * 5_000,
        7,
        b"\xff",
        {},
        ["j"],
    ],
    ids=range(14),
)
def test_a_header_of_another_program_counts_as_none(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        assert binding_of({HEADER: value}) is None
        assert binding_of({"headers": {HEADER: value}}) is None
    assert [each.message for each in caplog.records if "its task is not tracked" in each.message][1:] == []


OPTIONS: dict[str, Any] = {
    "replacements": 2,
    "publication": 1,
    "next": "json",
    "changed": True,
    "generation": 3,
    "stall": (120.0, "stop"),
}


@pytest.mark.parametrize("count", range(len(OPTIONS) + 1))
def test_a_header_of_an_earlier_release_lacks_the_last_elements(count: int) -> None:
    ref = JobRef(JobKey("job"), "i")
    full = json.loads(Binding(ref, 3, "a", 1, **OPTIONS).to_header())
    known: dict[str, Any] = dict([*OPTIONS.items()][:count])
    header = json.dumps(full[: len(full) - len(OPTIONS) + count])
    assert Binding.from_header(header) == Binding(ref, 3, "a", 1, **known)


@given(JSON | st.binary())
def test_no_header_raises(value: Any) -> None:
    binding_of({HEADER: value})
