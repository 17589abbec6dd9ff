"""Messages stored by a worker can be sent again unchanged (rule R16)."""

import json

import pytest
from celery import Celery, Task
from celery.signals import before_task_publish
from kombu import Queue

from celery_statemanager.integration import redelivery


@pytest.fixture
def app(key):
    app = Celery("redelivery", broker="memory://", set_as_current=False)
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
def test_received_message_is_sent_again_unchanged(app, task, receive, options):
    task.apply_async((1, "☃", {"a": [None]}), {"k": '"\\'}, **OPTIONS[options])
    first = receive()
    redelivery.resend(app, redelivery.message_to_json(first))
    again = receive()
    assert content(again) == content(first)
    assert again.payload[0] == [1, "☃", {"a": [None]}]


def test_message_is_sent_again_to_the_queue_it_came_from(app, task, key, receive):
    task.apply_async(queue=f"{key}.other")
    redelivery.resend(app, redelivery.message_to_json(receive(".other")))
    assert receive(".other").headers["task"] == "kept.task"


@pytest.mark.parametrize("serializer", ["pickle", "yaml", "msgpack"])
def test_message_in_another_format_is_sent_again_unchanged(app, task, receive, serializer):
    pytest.importorskip(serializer)
    app.conf.accept_content = ["json", serializer]
    task.apply_async(({1: "☃", 2: [3, 4]},), serializer=serializer)
    first = receive()
    redelivery.resend(app, redelivery.message_to_json(first))
    again = receive()
    assert (again.body, again.content_type, again.content_encoding) == (
        first.body,
        first.content_type,
        first.content_encoding,
    )
    assert again.headers == first.headers


def test_message_that_cannot_be_decoded_is_sent_again_unchanged(app, key, receive):
    with app.producer_or_acquire() as producer:
        producer.publish(b"\xff\xfe", routing_key=key, content_type="application/json", content_encoding="utf-8")
    redelivery.resend(app, redelivery.message_to_json(receive()))
    assert receive().body == b"\xff\xfe"


def test_no_task_class_and_no_signal_changes_what_is_sent_again(app, key, receive):
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
    redelivery.resend(app, redelivery.message_to_json(first))
    again = receive()
    assert again.headers == first.headers
    assert again.headers["tenant"] == "t"


def test_marks_of_a_dead_letter_are_not_sent_again(app, task, receive):
    task.apply_async(headers={"x-death": [{"count": 1}], "x-first-death-queue": "a", "mine": 1})
    redelivery.resend(app, redelivery.message_to_json(receive()))
    assert {name for name in receive().headers if name.startswith("x-")} == set()


def test_message_that_is_too_long_is_not_kept(task, receive):
    task.apply_async(("x" * redelivery.MAX_BYTES,))
    assert redelivery.message_to_json(receive()) is None


def test_kept_message_contains_the_name_of_its_task(task, receive):
    task.apply_async()
    text = redelivery.message_to_json(receive())
    assert redelivery.task_name(text) == "kept.task"
    assert json.loads(text)


def test_kept_message_of_protocol_1_contains_the_name_of_its_task(app, task, receive):
    app.conf.task_protocol = 1
    task.apply_async((1,))
    first = receive()
    text = redelivery.message_to_json(first, task.name)
    assert redelivery.task_name(text) == "kept.task"
    redelivery.resend(app, text)
    assert receive().payload == first.payload
