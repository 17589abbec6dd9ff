"""Messages that a retry or a replacement changed are kept, and can be published again unchanged (rule R19)."""

import json
import uuid
from types import SimpleNamespace

import pytest
from celery import Celery, Task
from celery.signals import before_task_publish
from kombu import Queue

from celery_statemanager.integration.binding import HEADER, Binding
from celery_statemanager.integration.outbox import changed
from celery_statemanager.records import JobKey, JobRef


@pytest.fixture
def key():
    return f"queue-{uuid.uuid4().hex}"


@pytest.fixture
def app(key):
    app = Celery("changed", broker="memory://", set_as_current=False)
    app.conf.task_default_queue = key  # all apps of a process share the broker in memory
    app.conf.task_queues = [Queue(key), Queue(f"{key}.other")]
    yield app
    app.close()


@pytest.fixture
def task(app):
    @app.task(name="kept.task", shared=False)
    def task(*args, **kwargs): ...

    return task


@pytest.fixture
def receive(app):
    """Receive the next message of the default queue, or of the queue with this suffix."""
    with app.connection_for_read() as connection:
        queues = app.amqp.queues
        yield lambda name="": queues[app.conf.task_default_queue + name](connection.default_channel).get(no_ack=True)


def content(message):
    headers = {name: value for name, value in message.headers.items() if name != "compression"}
    routed = [message.delivery_info[name] for name in ("exchange", "routing_key")]
    return message.payload, headers, message.properties["correlation_id"], message.properties["priority"], routed


OPTIONS = {
    "no options": {},
    "compressed": {"compression": "gzip"},
    "later, with a priority": {"countdown": 60, "priority": 7},
    "headers of the application": {"headers": {"mine": "é", "n": 1}},
    "links": {"link": {"task": "linked", "args": [], "kwargs": {}, "options": {}}},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_received_message_is_published_again_unchanged(app, task, receive, options):
    task.apply_async((1, "☃", {"a": [None]}), {"k": '"\\'}, **OPTIONS[options])
    first = receive()
    changed.publish_kept(app, changed.message_to_json(first))
    again = receive()
    assert content(again) == content(first)
    assert again.payload[0] == [1, "☃", {"a": [None]}]


def test_message_is_published_again_to_the_queue_it_came_from(app, task, key, receive):
    task.apply_async(queue=f"{key}.other")
    changed.publish_kept(app, changed.message_to_json(receive(".other")))
    assert receive(".other").headers["task"] == "kept.task"


@pytest.mark.parametrize("serializer", ["pickle", "yaml", "msgpack"])
def test_message_in_another_format_is_published_again_unchanged(app, task, receive, serializer):
    pytest.importorskip(serializer)
    app.conf.accept_content = ["json", serializer]
    task.apply_async(({1: "☃", 2: [3, 4]},), serializer=serializer)
    first = receive()
    changed.publish_kept(app, changed.message_to_json(first))
    again = receive()
    assert (again.body, again.content_type, again.content_encoding) == (
        first.body,
        first.content_type,
        first.content_encoding,
    )
    assert again.headers == first.headers


def test_message_that_cannot_be_decoded_is_published_again_unchanged(app, key, receive):
    with app.producer_or_acquire() as producer:
        producer.publish(b"\xff\xfe", routing_key=key, content_type="application/json", content_encoding="utf-8")
    changed.publish_kept(app, changed.message_to_json(receive()))
    assert receive().body == b"\xff\xfe"


def test_no_task_class_and_no_signal_changes_what_is_published_again(app, key, receive):
    class Tenant(Task):
        abstract = True

        def apply_async(self, args=None, kwargs=None, **options):
            return super().apply_async(args, kwargs, **{**options, "headers": {"tenant": "t"}})

    @app.task(base=Tenant, name="tenant", shared=False)
    def task(): ...

    def trace(headers=None, **_):
        headers["traceparent"] = "another trace"

    task.apply_async()
    first = receive()
    first.headers.update(traceparent="ours", headers={"x-request-id": "abc"})
    before_task_publish.connect(trace)
    changed.publish_kept(app, changed.message_to_json(first))
    again = receive()
    assert again.headers == first.headers
    assert again.headers["tenant"] == "t"


def test_marks_of_a_dead_letter_are_not_published_again(app, task, receive):
    task.apply_async(headers={"x-death": [{"count": 1}], "x-first-death-queue": "a", "mine": 1})
    changed.publish_kept(app, changed.message_to_json(receive()))
    assert {name for name in receive().headers if name.startswith("x-")} == set()


def test_message_that_is_too_long_is_not_kept(task, receive):
    task.apply_async(("x" * changed.MAX_BYTES,))
    assert changed.message_to_json(receive()) == changed.TOO_LARGE
    assert changed.task_name(changed.TOO_LARGE) == "None"


class Bad:
    """A value whose conversion to JSON fails."""

    def __json__(self):
        raise RuntimeError("no")


def test_message_with_a_header_that_cannot_be_stored_is_not_kept(task, receive):
    task.apply_async()
    message = receive()
    message.headers["bad"] = Bad()
    assert changed.message_to_json(message) == changed.TOO_LARGE


def test_kept_message_contains_the_name_of_its_task(task, receive):
    task.apply_async()
    text = changed.message_to_json(receive())
    assert changed.task_name(text) == "kept.task"
    assert json.loads(text)


def test_kept_message_of_protocol_1_contains_the_name_of_its_task(app, task, receive):
    app.conf.task_protocol = 1
    task.apply_async((1,))
    first = receive()
    text = changed.message_to_json(first, task.name)
    assert changed.task_name(text) == "kept.task"
    changed.publish_kept(app, text)
    assert receive().payload == first.payload


def published(app, task, **options):
    """Return the message of a task as ``before_task_publish`` sees it: its body, its headers, and its route."""
    seen = []

    def keep(body=None, headers=None, properties=None, exchange=None, routing_key=None, **_):
        seen.append((body, {**headers}, {"exchange": exchange, "routing_key": routing_key, **properties}))

    before_task_publish.connect(keep)
    task.apply_async((1, "☃"), {"k": None}, **options)
    return seen[-1]


def test_a_published_message_is_kept_as_it_was_sent(app, task, receive):
    body, headers, place = published(app, task, priority=3)
    place = {name: place[name] for name in ("exchange", "routing_key", "correlation_id", "priority")}
    first = receive()
    changed.publish_kept(app, changed.publication_to_json(body, headers, {**place, "serializer": "json"}))
    assert content(receive()) == content(first)


@pytest.mark.parametrize("argument", [Bad(), "x" * changed.MAX_BYTES])
def test_a_published_message_that_cannot_be_stored_is_not_kept(argument):
    arguments = {"exchange": "", "routing_key": "q", "serializer": "json"}
    body = (argument,), {}, {}
    assert changed.publication_to_json(body, {"task": "t", "id": "i"}, arguments) == changed.TOO_LARGE


class NotComparable:
    def __eq__(self, other):
        raise RuntimeError("no")

    __hash__ = None


REQUEST = SimpleNamespace(args=[1, {"a": 2}], kwargs={"k": 3}, delivery_info={"routing_key": "q"})


@pytest.mark.parametrize(
    ("body", "routing_key", "expected"),
    [
        (((1, {"a": 2}), {"k": 3}, {}), "q", False),
        (([1, {"a": 2}], {"k": 3}, {"chain": None}), "q", False),
        (((2, {"a": 2}), {"k": 3}, {}), "q", True),
        (((1, {"a": 2}), {"k": 4}, {}), "q", True),
        (((1, {"a": 2}), {}, {}), "q", True),
        (((1, {"a": 2}), {"k": 3}, {}), "another", True),
        (((NotComparable(), {"a": 2}), {"k": 3}, {}), "q", True),
        ({"args": [1, {"a": 2}], "kwargs": {"k": 3}, "retries": 1}, "q", True),
    ],
)
def test_a_retry_differs_if_its_arguments_or_its_queue_do(body, routing_key, expected):
    assert changed.is_changed(REQUEST, body, routing_key) is expected


def test_a_retry_of_a_task_without_arguments_does_not_differ():
    request = SimpleNamespace(args=None, kwargs=None, delivery_info=None)
    assert not changed.is_changed(request, ((), {}, {}), None)


@pytest.mark.parametrize(
    ("binding", "countdown", "args", "kept"),
    [
        ({}, None, (1, "☃"), None),
        ({}, 60, (1, "☃"), {"task", "eta"}),
        ({}, 60, (2,), {"task", "body", "publish"}),
        ({"changed": True}, 60, (1, "☃"), {"task", "body", "publish"}),
    ],
    ids=["the same", "later", "changed", "changed before"],
)
def test_the_eta_of_a_retry_is_kept_or_its_message_if_that_differs(app, task, binding, countdown, args, kept):
    here = Binding(JobRef(JobKey("job"), "f" * 16), 0, "a", **binding)
    headers = {HEADER: here.to_header()}
    body, headers, place = published(app, task, headers=headers, countdown=countdown, retries=1)
    request = SimpleNamespace(args=args, kwargs={"k": None}, delivery_info=place)
    running = SimpleNamespace(app=app, request=request, name=task.name)
    text = changed.mark_following(running, here, task.name, body, headers, place)
    if kept is None:
        assert text is None
    else:
        assert {*json.loads(text)} == kept
        assert changed.task_name(text) == task.name
        assert headers["eta"] in text


@pytest.mark.parametrize(("is_changed", "replacements"), [(True, 0), (False, 1), (False, 0)])
def test_only_a_message_that_is_not_stored_reaches_the_process_that_runs_it(
    app, task, receive, is_changed, replacements
):
    """The last task of a replacement by a chain is sent by the task before it, which keeps no message."""
    binding = Binding(JobRef(JobKey("job"), "f" * 16), 0, "a", replacements=replacements, changed=is_changed)
    task.apply_async((1,), headers={HEADER: binding.to_header()})
    message = receive()
    request = SimpleNamespace(request_dict={**message.headers}, message=message, task=task)
    changed.attach(request)
    running = SimpleNamespace(**request.request_dict, headers={**request.request_dict})
    kept = changed.detach(running)
    assert changed.ENVELOPE not in {**vars(running), **running.headers}
    if is_changed or replacements:
        changed.publish_kept(app, kept)
        assert content(receive()) == content(message)
    else:
        assert kept is None
