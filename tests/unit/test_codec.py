"""Records on the wire: what we write we read, and what the Go module wrote too."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import FrozenInstanceError, replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_statemanager import State, StateEvent, Status
from celery_statemanager.codec import (
    control_from_json,
    control_to_json,
    event_to_wire,
    from_rfc3339,
    plan_from_json,
    plan_to_json,
    rfc3339,
    state_from_wire,
    state_of,
    state_to_wire,
    summary_to_wire,
)
from celery_statemanager.indexset import IndexSet
from celery_statemanager.manager import new_job
from celery_statemanager.models import Summary
from celery_statemanager.plan import Plan
from celery_statemanager.records import Cancellation, Cell, Latch, Submission, to_datetime

UTC = timezone.utc
NOON = datetime(2026, 1, 31, 12, 0, 0, 123456, UTC)

GO_DOCUMENT = """
{"jobID": "etl-42", "tag": "ingest", "taskID": 3, "version": 7, "status": 40, "message": "page 4 of 10",
 "timestamp": "2026-01-31T12:00:00.123456789Z", "eventID": "6f1c", "payload": {"rows": [1, 2], "ok": true},
 "schemaVersion": 1, "numTasks": 8, "deleted": false, "replay": true, "somethingNew": 1}
"""

states = st.builds(
    State,
    job_id=st.text(min_size=1),
    task_index=st.integers(0, 10_000_000),
    tag=st.text(min_size=1),
    status=st.integers(-(2**31), 2**31 - 1),
    message=st.none() | st.text(),
    payload=st.none() | st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.booleans())),
    timestamp=st.none() | st.datetimes(timezones=st.just(UTC)),
    version=st.integers(0, 2**40),
    event_id=st.none() | st.text(min_size=1),
    attempt=st.integers(0, 100),
    schema_version=st.integers(1, 9),
)


def test_a_summary_names_what_was_not_run_apart_from_what_failed() -> None:
    summary = Summary(4, 8, 1, 1, 3, 1, State("job", 1, "a", -1), 0.5, not_run=2)
    assert summary_to_wire(summary) == {
        "status": -1,
        "fraction": 0.5,
        "expected": 8,
        "notStarted": 1,
        "running": 1,
        "finished": 3,
        "failed": 1,
        "notRun": 2,
    }
    assert summary_to_wire(replace(summary, not_run_indexes=IndexSet([1, 2])))["notRunIDs"] == "1-2"


@given(states)
def test_a_state_is_read_as_it_was_written(state: State) -> None:
    assert state_from_wire(json.loads(json.dumps(state_to_wire(state)))) == state


def test_the_fields_are_spelt_as_the_go_module_spells_them() -> None:
    state = State("etl-42", 3, "ingest", 40, "page 4 of 10", {"rows": 812}, NOON, 7, "6f1c", 2)
    assert event_to_wire(StateEvent(state, replay=True)) == {
        "jobID": "etl-42",
        "tag": "ingest",
        "taskID": 3,
        "version": 7,
        "status": 40,
        "message": "page 4 of 10",
        "timestamp": "2026-01-31T12:00:00.123456Z",
        "eventID": "6f1c",
        "payload": {"rows": 812},
        "attempt": 2,
        "schemaVersion": 1,
        "replay": True,
    }


def test_a_document_of_the_go_module_is_read() -> None:
    expected = State(
        "etl-42", 3, "ingest", 40, "page 4 of 10", {"rows": [1, 2], "ok": True}, NOON, 7, "6f1c", attempt=0
    )
    assert state_from_wire(json.loads(GO_DOCUMENT)) == expected


def test_what_a_document_does_not_say_is_empty() -> None:
    assert state_from_wire({"jobID": "j", "taskID": 0, "tag": "t", "status": 0}) == State("j", 0, "t")


def test_a_status_goes_out_as_a_number_and_a_payload_as_an_object_of_its_own() -> None:
    payload = {"n": 1}
    wire = state_to_wire(State("j", 0, "t", Status.FAILED, payload=payload))
    assert json.dumps(wire["status"]) == "-1"
    wire["payload"]["n"] = 2
    assert payload == {"n": 1}
    assert "payload" not in state_to_wire(State("j", 0, "t"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-31T12:00:00.123456Z", NOON),
        ("2026-01-31T12:00:00.123456789Z", NOON),
        ("2026-01-31T12:00:00Z", NOON.replace(microsecond=0)),
        ("2026-01-31T12:00:00.1Z", NOON.replace(microsecond=100_000)),
        ("2026-01-31T12:00:00.12Z", NOON.replace(microsecond=120_000)),
        ("2026-01-31T12:00:00.1234Z", NOON.replace(microsecond=123_400)),
        ("2026-01-31T12:00:00.0000001Z", NOON.replace(microsecond=0)),
        ("2026-01-31T14:00:00.123456+02:00", NOON),
        ("2026-01-31T04:30:00.123456-07:30", NOON),
        ("2026-01-31t12:00:00.123456z", NOON),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
    ],
)
def test_moments_are_read_in_every_precision_and_offset(text: str, expected: datetime) -> None:
    found = from_rfc3339(text)
    assert found == expected
    assert found.utcoffset() == timedelta(0)


@pytest.mark.parametrize("text", ["", "yesterday", "2026-01-31", "2026-01-31T12:00:00", "2026-13-31T12:00:00Z"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        from_rfc3339(text)


@given(st.datetimes(timezones=st.just(UTC)))
def test_moments_are_written_in_utc_with_microseconds(moment: datetime) -> None:
    text = rfc3339(moment)
    assert text.endswith("Z")
    assert len(text) == len("2026-01-31T12:00:00.123456Z")
    assert from_rfc3339(text) == moment
    east = moment.replace(tzinfo=timezone(timedelta(0)))
    assert rfc3339(east) == text


@given(st.integers(0, 2**52))
def test_microseconds_are_exact(microseconds: int) -> None:
    moment = to_datetime(microseconds)
    assert (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) == microseconds


def test_a_cell_is_read_as_a_state() -> None:
    cell = Cell(40, "words", '{"n":[1]}', 1_769_860_800_123_456, 7, "e1", 2, open=True)
    expected = State("j", 3, "t", 40, "words", {"n": [1]}, NOON, 7, "e1", 2)
    assert state_of("j", "t", 3, cell) == expected
    assert state_of("j", "t", 3, Cell()) == State("j", 3, "t")


def test_a_state_that_was_read_is_a_state_in_every_way() -> None:
    state = state_of("j", "t", 3, Cell(40, "words", None, 1_769_860_800_123_456, 7, "e1", 2))
    made = State("j", 3, "t", 40, "words", None, NOON, 7, "e1", 2)
    assert (type(state), hash(state), repr(state)) == (State, hash(made), repr(made))
    assert replace(state, status=50) == replace(made, status=50)
    assert pickle.loads(pickle.dumps(state)) == copy.copy(state) == made
    with pytest.raises(FrozenInstanceError):
        state.status = 50  # type: ignore[misc]


@pytest.mark.parametrize(
    "tags", [None, ("a",), ("b", "a", "ß"), {"a": [0, 2], "b": range(5)}, {"x": [4], "y": [0, 1, 2, 3]}]
)
def test_a_plan_is_read_as_it_was_written(tags: Any) -> None:
    plan = None if tags is None else Plan.from_spec(5, tags)
    assert plan_from_json(plan_to_json(plan)) == plan


def test_a_plan_is_written_by_ranges() -> None:
    assert plan_to_json(Plan.from_spec(10_000_000, ("b", "a"))) == '[[["b","a"],"0-9999999"]]'


def test_the_changing_part_of_a_job_is_read_as_it_was_written() -> None:
    job = new_job("job", 2)
    changed = job.with_latches(success=Latch("sig", 1, 2), failure=Latch("ß", 3), settled=Latch(None, 4))
    empty = control_from_json(control_to_json(job))
    assert empty == {
        "latches": dict(job.latches),
        "cancelled": None,
        "submission": None,
        "tombstoned_at": None,
    }
    values = {
        "latches": dict(changed.latches),
        "cancelled": Cancellation(None, 5),
        "submission": Submission(3, done=True, alive_until=9),
        "tombstoned_at": 7,
    }
    assert control_from_json(control_to_json(type(job)(**_fields(changed) | values))) == values


def test_latches_of_a_later_release_are_passed_over_and_missing_ones_are_empty() -> None:
    text = (
        '{"latches":{"success":["s",1,null],"later":["x",2,3]},"cancelled":null,"submission":null,"tombstonedAt":null}'
    )
    latches = control_from_json(text)["latches"]
    assert latches == {"success": Latch("s", 1), "failure": Latch(), "settled": Latch()}


def _fields(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}
