"""Limits of names, numbers, messages and payloads (rule R9)."""

from __future__ import annotations

import enum
import itertools
import json
import sys
from collections import UserDict
from datetime import datetime, timezone
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_statemanager import Status, limits
from celery_statemanager.codec import progress_json
from celery_statemanager.limits import percent
from celery_statemanager.records import new_job


class Tag(str, enum.Enum):
    SCAN = "scan"


@pytest.mark.parametrize(
    "name",
    ["a", "x" * 200, " ", ".", "..", "__x__", "a:b/c", "日本", "\U0001f600" * 200, "a\u00a0b", "\u200b", "\ue000"],
)
def test_check_name_accepts_1_to_200_characters(name: str) -> None:
    assert limits.check_name("tag", name) == name


@pytest.mark.parametrize(
    "name", ["", "x" * 201, "a\nb", "\x00", "\t", "\x7f", "\x85", "\ud800", "a\udfffb", "日" * 201], ids=ascii
)
def test_check_name_rejects_wrong_lengths_control_characters_and_surrogates(name: str) -> None:
    with pytest.raises(ValueError, match="tag ") as raised:
        limits.check_name("tag", name)
    str(raised.value).encode()


@pytest.mark.parametrize("name", [None, 7, 7.5, True, b"a", ["a"], ...], ids=repr)
def test_check_name_rejects_values_that_are_not_strings(name: Any) -> None:
    with pytest.raises(TypeError, match="tag must be a string, not"):
        limits.check_name("tag", name)


def test_check_name_returns_the_value_of_a_str_enum() -> None:
    assert type(limits.check_name("tag", Tag.SCAN)) is str
    assert limits.check_name("tag", Tag.SCAN) == "scan"


def test_check_optional_accepts_none() -> None:
    assert limits.check_optional("run_token", None) is None
    with pytest.raises(ValueError, match="run_token"):
        limits.check_optional("run_token", "")


@pytest.mark.parametrize("value", [True, False, None, "1", 1.0, float("nan"), float("inf"), b"1", [1], 1j], ids=repr)
@pytest.mark.parametrize(
    "check",
    [limits.check_status, limits.check_num_tasks, lambda value: limits.check_index(value, 5)],
    ids=["status", "num_tasks", "task_index"],
)
def test_integer_checks_reject_other_types(check: Any, value: Any) -> None:
    with pytest.raises(TypeError, match=r"must be an int, not (bool|NoneType|str|float|bytes|list|complex) "):
        check(value)


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (limits.check_status, (-(2**31), -1, 0, 2**31 - 1), (-(2**31) - 1, 2**31, 10**400)),
        (limits.check_num_tasks, (1, 10_000_000), (0, -1, 10_000_001)),
        (lambda value: limits.check_index(value, 5), (0, 4), (-1, 5)),
    ],
    ids=["status", "num_tasks", "task_index"],
)
def test_integer_checks_enforce_their_range(check: Any, good: tuple[int, ...], bad: tuple[int, ...]) -> None:
    assert [check(value) for value in good] == list(good)
    for value in bad:
        with pytest.raises(ValueError, match=" must be "):
            check(value)


def test_a_huge_integer_is_described_by_its_number_of_bits() -> None:
    for check in (limits.check_status, limits.check_num_tasks, lambda value: percent(value, 10)):
        with pytest.raises(ValueError, match=r"^\w+ .*a number of 16610 bits") as raised:
            check(10**5000)
        assert len(str(raised.value)) < 200


def test_check_status_returns_a_plain_int_for_an_enum() -> None:
    assert type(limits.check_status(Status.FAILED)) is int


@pytest.mark.parametrize("message", ["", "a", "\x00\n", "日本", "x" * 100_000])
def test_check_message_accepts_any_text(message: str) -> None:
    assert limits.check_message(message) == message


@pytest.mark.parametrize("message", [7, b"x", ["x"], True, ValueError("x")], ids=repr)
def test_check_message_rejects_values_that_are_not_strings(message: Any) -> None:
    with pytest.raises(TypeError, match="message must be a string, not"):
        limits.check_message(message)


@pytest.mark.parametrize("message", ["\ud800", "ok \udc00 ok"], ids=ascii)
def test_check_message_rejects_lone_surrogates(message: str) -> None:
    with pytest.raises(ValueError, match="message contains a lone surrogate at character"):
        limits.check_message(message)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@pytest.mark.timeout(600)  # the full profile generates many examples
@given(st.dictionaries(st.text(), json_values))
def test_encode_payload_round_trips_every_json_object(payload: dict[str, Any]) -> None:
    text = limits.encode_payload(payload)
    assert text is not None
    assert json.loads(text) == payload
    assert text == json.dumps(payload, ensure_ascii=False, separators=(",", ":"))


def test_encode_payload_distinguishes_none_from_an_empty_object() -> None:
    assert limits.encode_payload(None) is None
    assert limits.encode_payload({}) == "{}"


def test_encode_payload_accepts_mappings_tuples_and_enums() -> None:
    assert limits.encode_payload(MappingProxyType({"a": (1, 2)})) == '{"a":[1,2]}'
    assert limits.encode_payload({"a": {"b": Status.FAILED}}) == '{"a":{"b":-1}}'


def shared(levels: int) -> Any:
    """Return a list of few objects that stands for 2 ** levels values."""
    value: Any = 0
    for _ in range(levels):
        value = [value, value]
    return value


class Unreadable(UserDict[str, int]):
    """A mapping whose content raises a ``ValueError`` that takes five arguments."""

    def __iter__(self) -> Any:
        return iter(b"\xff".decode())


def cycle() -> dict[str, Any]:
    payload: dict[str, Any] = {"list": []}
    payload["list"].append(payload)
    return payload


def deep(levels: int, *, of: type = dict) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = {"x": value} if of is dict else [value]
    return {"x": value}


@pytest.mark.parametrize(
    ("payload", "kind", "text"),
    [
        ([1], TypeError, "payload must be a JSON object"),
        ("{}", TypeError, "payload must be a JSON object"),
        (b"{}", TypeError, "payload must be a JSON object"),
        (7, TypeError, "payload must be a JSON object"),
        (True, TypeError, "payload must be a JSON object"),
        ({1: 2}, TypeError, "keys must be strings, not int 1"),
        ({"a": {None: 2}}, TypeError, "keys must be strings, not NoneType"),
        ({"a": [{True: 2}]}, TypeError, "keys must be strings, not bool True"),
        ({"a": object()}, TypeError, "not valid JSON"),
        ({"a": {1, 2}}, TypeError, "not valid JSON"),
        ({"a": b"x"}, TypeError, "not valid JSON"),
        ({"a": float("nan")}, ValueError, "not valid JSON"),
        ({"a": [float("-inf")]}, ValueError, "not valid JSON"),
        ({"a": "\ud800"}, ValueError, "payload contains a lone surrogate"),
        ({"\udfff": 1}, ValueError, "payload contains a lone surrogate"),
        ({"a": 10**5000}, ValueError, "not valid JSON"),
        (cycle(), ValueError, "contains itself"),
        (deep(100_000), ValueError, "nested too deeply"),
        (deep(100_000, of=list), ValueError, "nested too deeply"),
        ({"a": shared(100)}, ValueError, "not valid JSON: it has more than 2,000,000 values"),
        ({"a": datetime(2026, 1, 1, tzinfo=timezone.utc)}, TypeError, "not valid JSON"),
        ({"a": Decimal(1)}, TypeError, "not valid JSON"),
        (Unreadable(), ValueError, "not valid JSON"),
    ],
    ids=itertools.count(),
)
def test_encode_payload_rejects_values_that_are_not_json_objects(
    payload: Any, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        limits.encode_payload(payload)


def test_encode_metadata_limits_its_size_and_names_what_is_wrong() -> None:
    assert limits.encode_metadata(None) is limits.encode_metadata({}) is None
    assert limits.encode_metadata({"owner": "ß"}) == '{"owner":"ß"}'
    room = limits.MAX_METADATA_BYTES - len('{"x":""}')
    assert limits.encode_metadata({"x": "a" * room})
    with pytest.raises(ValueError, match=r"metadata takes 4097 bytes as JSON, the limit is 4096: keep large data"):
        limits.encode_metadata({"x": "a" * (room - 1) + "ß"})
    rejected = [
        (["x"], TypeError, "metadata must be a JSON object .*, not list"),
        ({1: 2}, TypeError, "metadata is not valid JSON: keys must be strings, not int 1"),
        ({"x": float("nan")}, ValueError, "metadata is not valid JSON"),
        ({"x": "\ud800"}, ValueError, "metadata contains a lone surrogate"),
        (deep(100_000), ValueError, "metadata is nested too deeply"),
    ]
    for metadata, kind, text in rejected:
        with pytest.raises(kind, match=text):
            limits.encode_metadata(metadata)


def test_the_deepest_accepted_payload_can_be_decoded_in_a_deep_call_stack() -> None:
    accepted = max(levels for levels in range(1, 2000) if _is_accepted(deep(levels)))
    assert accepted >= 100
    text = limits.encode_payload(deep(accepted))
    assert text is not None

    def read_below(frames: int) -> Any:
        return read_below(frames - 1) if frames else json.loads(text)

    assert read_below(sys.getrecursionlimit() // 2) == deep(accepted)


def _is_accepted(payload: Any) -> bool:
    try:
        limits.encode_payload(payload)
    except ValueError:
        return False
    return True


def test_check_size_limits_the_encoded_bytes_of_message_and_payload() -> None:
    text = limits.encode_payload({"x": "ß" * 40_000})
    with pytest.raises(ValueError, match="take 80008 bytes together, the limit is 65536"):
        limits.check_size(None, text, limits.MAX_STATE_BYTES)
    limits.check_size("a" * 65_536, None, limits.MAX_STATE_BYTES)
    limits.check_size(None, None, 0)
    with pytest.raises(ValueError, match="address in the payload"):
        limits.check_size("ß", "{}", 3)


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("fine", 10, "fine"),
        ("\ud800x", 10, "?x"),
        ("x" * 11, 10, "x" * 9 + "…"),
        ("x" * 10, 10, "x" * 10),
        ("", 10, ""),
    ],
)
def test_sanitize_returns_a_valid_message(text: str, limit: int, expected: str) -> None:
    assert limits.sanitize(text, limit) == expected
    assert limits.check_message(limits.sanitize(text, limit)) == expected


@pytest.mark.parametrize(
    ("done", "total", "expected"),
    [
        (0, 10, 1),
        (1, 1000, 1),
        (1, 3, 33),
        (2.5, 10, 25),
        (99.99, 100, 99),
        (10, 10, 100),
        (10**20 - 1, 10**20, 99),
        (10**400 - 1, 10**400, 99),
        (10**400, 10**400, 100),
        (0.1, 10**400, 1),
        (1e308, 1e308, 100),
        (0.9999999999999999, 1.0, 99),
        (5e-324, 1e308, 1),
        (29, 100, 29),
        (Status.STARTED, 2, 50),
    ],
    ids=lambda value: repr(value)[:25],
)
def test_percent_is_1_to_100_and_100_only_when_complete(done: float, total: float, expected: int) -> None:
    assert percent(done, total) == expected
    assert json.loads(progress_json(done, total)) == {"done": done, "total": total}


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_percent_is_rounded_down(done: int, total: int) -> None:
    done = min(done, total)
    assert percent(done, total) == max(1, 100 * done // total)


@pytest.mark.parametrize(
    ("done", "total", "kind"),
    [
        (1, 0, ValueError),
        (-1, 5, ValueError),
        (6, 5, ValueError),
        (0, 0, ValueError),
        (float("nan"), 5, ValueError),
        (1, float("nan"), ValueError),
        (1, float("inf"), ValueError),
        (True, 5, TypeError),
        (1, True, TypeError),
        ("1", 5, TypeError),
        (1, None, TypeError),
        (10**5000, 10**5000, ValueError),
    ],
    ids=lambda value: repr(value)[:20] if not isinstance(value, int) or value < 10**9 else "huge",
)
def test_progress_rejects_invalid_values(done: Any, total: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        (percent(done, total), progress_json(done, total))


def test_new_job_checks_its_arguments_and_creates_a_unique_incarnation() -> None:
    jobs = [new_job("job", 2, ("a",), "t") for _ in range(100)]
    assert len({job.incarnation for job in jobs}) == 100
    for arguments in (("", 2), ("job", 0), ("job", 2, ()), ("job", 2, None, "")):
        with pytest.raises(ValueError):
            new_job(*arguments)
