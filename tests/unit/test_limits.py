"""What may be stored (rule R9): every bad input is refused in clear words before anything is sent."""

from __future__ import annotations

import enum
import itertools
import json
import sys
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_statemanager import Status, limits
from celery_statemanager.manager import new_job, percent, progress_json


class Tag(str, enum.Enum):
    SCAN = "scan"


@pytest.mark.parametrize(
    "name",
    ["a", "x" * 200, " ", ".", "..", "__x__", "a:b/c", "日本", "\U0001f600" * 200, "a\u00a0b", "\u200b", "\ue000"],
)
def test_names_of_1_to_200_characters_are_accepted(name: str) -> None:
    assert limits.check_name("tag", name) == name


@pytest.mark.parametrize(
    "name", ["", "x" * 201, "a\nb", "\x00", "\t", "\x7f", "\x85", "\ud800", "a\udfffb", "日" * 201], ids=ascii
)
def test_other_texts_are_refused_as_names(name: str) -> None:
    with pytest.raises(ValueError, match="tag ") as refused:
        limits.check_name("tag", name)
    str(refused.value).encode()


@pytest.mark.parametrize("name", [None, 7, 7.5, True, b"a", ["a"], ...], ids=repr)
def test_what_is_no_text_is_refused_as_a_name(name: Any) -> None:
    with pytest.raises(TypeError, match="tag is a text, not"):
        limits.check_name("tag", name)


def test_a_name_that_is_more_than_a_text_is_stored_as_the_text() -> None:
    assert type(limits.check_name("tag", Tag.SCAN)) is str
    assert limits.check_name("tag", Tag.SCAN) == "scan"


def test_an_optional_name_may_be_missing() -> None:
    assert limits.check_optional("run_token", None) is None
    with pytest.raises(ValueError, match="run_token"):
        limits.check_optional("run_token", "")


@pytest.mark.parametrize("value", [True, False, None, "1", 1.0, float("nan"), float("inf"), b"1", [1], 1j], ids=repr)
@pytest.mark.parametrize(
    "check",
    [limits.check_status, limits.check_num_tasks, lambda value: limits.check_index(value, 5)],
    ids=["status", "num_tasks", "task_index"],
)
def test_only_integers_are_integers(check: Any, value: Any) -> None:
    with pytest.raises(TypeError, match=r"is an int, not (bool|NoneType|str|float|bytes|list|complex) "):
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
def test_integers_have_their_range(check: Any, good: tuple[int, ...], bad: tuple[int, ...]) -> None:
    assert [check(value) for value in good] == list(good)
    for value in bad:
        with pytest.raises(ValueError, match=" is "):
            check(value)


def test_a_number_beyond_what_python_writes_is_refused_in_few_words() -> None:
    for refuse in (limits.check_status, limits.check_num_tasks, lambda value: percent(value, 10)):
        with pytest.raises(ValueError, match=r"^\w+ is .*a number of 16610 bits") as refused:
            refuse(10**5000)
        assert len(str(refused.value)) < 200


def test_an_enum_of_integers_is_an_integer() -> None:
    assert type(limits.check_status(Status.FAILED)) is int


@pytest.mark.parametrize("message", ["", "a", "\x00\n", "日本", "x" * 100_000])
def test_any_text_is_a_message(message: str) -> None:
    assert limits.check_message(message) == message


@pytest.mark.parametrize("message", [7, b"x", ["x"], True, ValueError("x")], ids=repr)
def test_what_is_no_text_is_no_message(message: Any) -> None:
    with pytest.raises(TypeError, match="message is a text, not"):
        limits.check_message(message)


@pytest.mark.parametrize("message", ["\ud800", "ok \udc00 ok"], ids=ascii)
def test_a_message_has_no_lone_surrogate(message: str) -> None:
    with pytest.raises(ValueError, match="message holds a lone surrogate at character"):
        limits.check_message(message)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@pytest.mark.timeout(600)  # by the full profile, on a busy machine
@given(st.dictionaries(st.text(), json_values))
def test_every_json_object_is_a_payload(payload: dict[str, Any]) -> None:
    text = limits.encode_payload(payload)
    assert text is not None
    assert json.loads(text) == payload
    assert text == json.dumps(payload, ensure_ascii=False, separators=(",", ":"))


def test_no_payload_is_none_and_an_empty_one_is_not() -> None:
    assert limits.encode_payload(None) is None
    assert limits.encode_payload({}) == "{}"


def test_any_mapping_is_a_payload_and_a_tuple_is_a_list() -> None:
    assert limits.encode_payload(MappingProxyType({"a": (1, 2)})) == '{"a":[1,2]}'
    assert limits.encode_payload({"a": {"b": Status.FAILED}}) == '{"a":{"b":-1}}'


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
        ([1], TypeError, "payload is a JSON object"),
        ("{}", TypeError, "payload is a JSON object"),
        (b"{}", TypeError, "payload is a JSON object"),
        (7, TypeError, "payload is a JSON object"),
        (True, TypeError, "payload is a JSON object"),
        ({1: 2}, TypeError, "keys are texts, not int 1"),
        ({"a": {None: 2}}, TypeError, "keys are texts, not NoneType"),
        ({"a": [{True: 2}]}, TypeError, "keys are texts, not bool True"),
        ({"a": object()}, TypeError, "not JSON"),
        ({"a": {1, 2}}, TypeError, "not JSON"),
        ({"a": b"x"}, TypeError, "not JSON"),
        ({"a": float("nan")}, ValueError, "not JSON"),
        ({"a": [float("-inf")]}, ValueError, "not JSON"),
        ({"a": "\ud800"}, ValueError, "payload holds a lone surrogate"),
        ({"\udfff": 1}, ValueError, "payload holds a lone surrogate"),
        ({"a": 10**5000}, ValueError, "not JSON"),
        (cycle(), ValueError, "holds itself"),
        (deep(100_000), ValueError, "nested too deeply"),
        (deep(100_000, of=list), ValueError, "nested too deeply"),
    ],
    ids=itertools.count(),
)
def test_what_is_no_json_object_is_no_payload(payload: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        limits.encode_payload(payload)


def test_a_payload_that_was_accepted_can_be_read_from_a_deep_stack() -> None:
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


def test_a_huge_payload_is_refused_by_its_size_in_bytes() -> None:
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
def test_any_text_can_be_made_a_message(text: str, limit: int, expected: str) -> None:
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
def test_percent_is_1_to_100_and_100_only_when_all_is_done(done: float, total: float, expected: int) -> None:
    assert percent(done, total) == expected
    assert json.loads(progress_json(done, total)) == {"done": done, "total": total}


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_percent_is_floored(done: int, total: int) -> None:
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
def test_progress_that_is_none_is_refused(done: Any, total: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        (percent(done, total), progress_json(done, total))


def test_a_new_job_is_checked_and_has_an_incarnation_of_its_own() -> None:
    jobs = [new_job("job", 2, ("a",), "t") for _ in range(100)]
    assert len({job.incarnation for job in jobs}) == 100
    for arguments in (("", 2), ("job", 0), ("job", 2, ()), ("job", 2, None, "")):
        with pytest.raises(ValueError):
            new_job(*arguments)
