"""The value that a stage passes to the next one: kept as text, and put into the stored message (rule R19)."""

from collections import Counter, OrderedDict
from dataclasses import replace
from datetime import datetime, timezone
from decimal import Decimal
from typing import NamedTuple

import pytest
from celery import Celery, Task
from kombu.exceptions import ContentDisallowed, EncodeError

from celery_statemanager import Status
from celery_statemanager.integration.binding import IMMUTABLE, Binding
from celery_statemanager.integration.outbox.capture import Capture
from celery_statemanager.integration.outbox.envelope import content_of, messages_from_json
from celery_statemanager.integration.outbox.making import REJECTED, MessageMaker, binding_in
from celery_statemanager.integration.outbox.member import _stages
from celery_statemanager.integration.outbox.values import (
    MAX_BYTES,
    PLACEHOLDER,
    pass_on,
    serializer_of,
    takes_value,
    with_value,
)
from celery_statemanager.records import JobKey, JobRef, Write

REF = JobRef(JobKey("job"), "f" * 16)
FIRST, LATER = Binding(REF, 3, "a"), Binding(REF, 3, "b", 1)


@pytest.fixture
def app():
    app = Celery("values", broker="memory://", set_as_current=False)
    app.conf.accept_content = ["json", "pickle", "yaml", "msgpack"]
    yield app
    app.close()


@pytest.fixture
def task(app):
    @app.task(name="task", shared=False)
    def task(*_, **__): ...

    return task


def made(app, *stages):
    """Return the messages of a row as they are stored."""
    with Capture(app) as capture:
        tags = [*"abcdef"[: len(stages)]]
        return messages_from_json(MessageMaker(app, REF, capture).make(3, stages, tags))


def finished():
    return Write.ending("a", 3, Status.FINISHED, attempt=1)


def passed(app, messages, result):
    """Return the arguments that the second stage gets after the first one has returned a result."""
    text = pass_on(finished(), binding_in(messages[0]), result)
    return content_of(app, messages[1] if text is None else with_value(app, messages[1], text))[:2]


VALUES = [None, True, 0, -1.5, "", 'quotes " and \\', "line\nend \u2028 ☃", [], {}, [1, {"a": [None, {}]}], {"k": '"'}]


@pytest.mark.parametrize("serializer", ["json", "pickle", "yaml", "msgpack"])
@pytest.mark.parametrize("value", VALUES)
def test_the_value_is_the_first_argument_of_the_next_stage(app, task, serializer, value):
    pytest.importorskip(serializer)
    later = task.s(7, "x", k={"n": [1]}).set(serializer=serializer)
    args, kwargs = passed(app, made(app, task.s(1), later), value)
    assert ([*args], kwargs) == ([value, 7, "x"], {"k": {"n": [1]}})


@pytest.mark.parametrize("protocol", [1, 2])
def test_both_protocols_of_celery_take_a_value(app, task, protocol):
    app.conf.task_protocol = protocol
    _, later = made(app, task.s(), task.s(7))
    content = content_of(app, with_value(app, later, '{"a":1}'))
    assert (content["args"] if protocol == 1 else content[0]) == [{"a": 1}, 7]


def test_values_of_types_that_only_pickle_has(app, task):
    value = (Decimal("0.10"), {1, 2}, b"\x00\xff", datetime(2026, 1, 31, tzinfo=timezone.utc))
    args, _ = passed(app, made(app, task.s(), task.s(7).set(serializer="pickle")), value)
    assert args == (value, 7)


def test_values_of_types_that_celery_adds_to_json(app, task):
    value = {"price": Decimal("0.10"), "at": datetime(2026, 1, 31, tzinfo=timezone.utc), "raw": b"\x00\xff"}
    assert passed(app, made(app, task.s(), task.s()), value)[0] == [value]


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_a_body_that_contains_the_value_twice(app, serializer):
    """A task class may pass the first argument on in a keyword, too."""

    class Twice(Task):
        def apply_async(self, args=None, kwargs=None, **options):
            return super().apply_async(args, {**(kwargs or {}), "again": args[0], "nested": [args[0]]}, **options)

    @app.task(name="twice", base=Twice, shared=False)
    def twice(*_, **__): ...

    args, kwargs = passed(app, made(app, twice.s(0), twice.s(7).set(serializer=serializer)), {"a": '"'})
    assert ([*args], kwargs) == ([{"a": '"'}, 7], {"again": {"a": '"'}, "nested": [{"a": '"'}]})


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_a_value_that_equals_the_placeholder_is_kept(app, task, serializer):
    args, _ = passed(app, made(app, task.s(), task.s(7).set(serializer=serializer)), PLACEHOLDER)
    assert [*args] == [PLACEHOLDER, 7]


def test_text_that_contains_the_placeholder_is_not_replaced(app, task):
    text = f"a {PLACEHOLDER}"
    assert passed(app, made(app, task.s(), task.s(text, f'"{PLACEHOLDER}"')), 1)[0] == [1, text, f'"{PLACEHOLDER}"']


def test_an_immutable_stage_takes_no_value(app, task):
    messages = made(app, task.s(), task.si(7))
    assert binding_in(messages[0]).next == IMMUTABLE
    assert not takes_value(messages[1])
    assert passed(app, messages, object()) == [[7], {}]


@pytest.mark.parametrize("serializer", ["pickle", "yaml", "msgpack"])
def test_the_value_before_an_immutable_stage_need_not_be_serializable(app, task, serializer):
    pytest.importorskip(serializer)
    messages = made(app, task.s(), task.si(7).set(serializer=serializer))
    assert [*passed(app, messages, lambda: 0)[0]] == [7]


class Point(NamedTuple):
    x: int
    y: int


def test_arguments_that_are_pickled_keep_their_types(app, task):
    args = (Point(1, 2), Counter("aab"), OrderedDict(a=[1]))
    messages = made(app, task.s(), task.s(*args).set(serializer="pickle"))
    passed_on = passed(app, messages, 5)[0]
    assert passed_on == (5, *args)
    assert [type(each) for each in passed_on] == [int, Point, Counter, OrderedDict]


def test_each_message_names_the_serializer_of_the_next_one(app, task):
    stages = task.s(), task.s().set(serializer="pickle"), task.s(), task.si()
    messages = made(app, *stages)
    assert [binding_in(each).next for each in messages] == ["pickle", "json", IMMUTABLE, None]
    assert [serializer_of(each) for each in messages] == ["json", "pickle", "json", "json"]


def test_a_stage_before_one_that_is_not_published_takes_no_value(app, task):
    class Silent(Task):
        def apply_async(self, *args, **options):
            return self.AsyncResult("another")

    @app.task(name="silent", base=Silent, shared=False)
    def silent(): ...

    messages = made(app, task.s(), silent.s(), task.s())
    assert messages[1][REJECTED] == "not published: apply_async of Silent sent no message for task silent"
    assert binding_in(messages[0]).next == IMMUTABLE
    assert binding_in(messages[1]).tag == "b"


def test_the_placeholder_is_not_shown(app, task):
    _, later = made(app, task.s(), task.s(7))
    assert later["publish"]["headers"]["argsrepr"] == "(..., 7)"
    assert [stage.args for stage in _stages(app, made(app, task.s(1), task.s(7)))] == [(1,), (7,)]


def test_the_stages_of_a_row_are_children_of_each_other(app, task):
    headers = [each["publish"]["headers"] for each in made(app, task.s(), task.s(), task.s())]
    ids = [each["id"] for each in headers]
    assert [each["root_id"] for each in headers] == [ids[0]] * 3
    assert [each["parent_id"] for each in headers] == [None, *ids[:2]]


def test_a_row_keeps_the_value_that_its_next_stage_takes():
    write = finished()
    assert pass_on(write, replace(FIRST, next="json"), {"a": 1}) == '{"a": 1}' == write.value
    assert write.next_is_due


def test_the_end_of_the_last_stage_removes_the_value():
    write = finished()
    assert pass_on(write, LATER, {"a": 1}) is None
    assert (write.value, write.next_is_due) == ("", False)


def test_a_row_with_one_stage_keeps_no_value():
    write = finished()
    assert pass_on(write, FIRST, {"a": 1}) is None
    assert (write.value, write.next_is_due) == (None, False)


@pytest.mark.parametrize(("size", "is_kept"), [(MAX_BYTES - 2, True), (MAX_BYTES - 1, False)])
def test_a_large_value_is_passed_on_and_not_kept(size, is_kept):
    write = finished()
    text = pass_on(write, replace(FIRST, next="json"), "x" * size)
    assert len(text) == size + 2
    assert write.value == (text if is_kept else "")
    assert write.next_is_due


def test_the_size_of_a_value_counts_in_bytes():
    write = finished()
    pass_on(write, replace(FIRST, next="yaml"), b"x" * MAX_BYTES)
    assert write.value == ""


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_a_value_that_cannot_be_encoded_raises(serializer):
    with pytest.raises(EncodeError):
        pass_on(
            finished(), replace(FIRST, next=serializer), object() if serializer == "json" else (each for each in ())
        )


def test_a_value_is_not_decoded_against_the_settings(app, task):
    messages = made(app, task.s(), task.s().set(serializer="pickle"))
    text = pass_on(finished(), binding_in(messages[0]), 1)
    app.conf.accept_content = ["json"]
    with pytest.raises(ContentDisallowed):
        with_value(app, messages[1], text)
