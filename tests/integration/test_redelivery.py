"""Messages stored by a worker can be sent again unchanged (rule R16)."""

import json

import pytest
import thrown
from celery import Celery
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


def test_message_that_is_not_json_is_not_kept(app, task, receive):
    app.conf.accept_content = ["json", "pickle"]
    task.apply_async((1,), serializer="pickle")
    assert redelivery.message_to_json(receive()) is None


def test_message_whose_body_is_not_text_is_not_kept(app, key, receive):
    with app.producer_or_acquire() as producer:
        producer.publish(b"\xff\xfe", routing_key=key, content_type="application/json", content_encoding="utf-8")
    assert redelivery.message_to_json(receive()) is None


def test_message_that_is_too_long_is_not_kept(task, receive):
    task.apply_async(("x" * redelivery.MAX_BYTES,))
    assert redelivery.message_to_json(receive()) is None


def test_kept_message_contains_the_name_of_its_task(task, receive):
    task.apply_async()
    text = redelivery.message_to_json(receive())
    assert redelivery.task_name(text) == "kept.task"
    assert json.loads(text)


class Uncooperative:
    def __json__(self):
        raise RuntimeError("not today")


@pytest.mark.parametrize(
    "argument", [thrown.VALUES["abyss"](), thrown.VALUES["circle"](), Uncooperative()], ids=range(3)
)
def test_a_message_with_arguments_that_cannot_be_encoded_is_not_kept(task, argument):
    """With another serializer than JSON, a task gets any object."""
    task.push_request(args=(argument,), kwargs={}, id="x", retries=0)
    try:
        assert redelivery.execution_to_json(task) is None
    finally:
        task.pop_request()
