"""Messages that are kept to be sent again: what comes back is what was sent (rule R16)."""

import json

import pytest
from celery import Celery
from kombu import Queue

from celery_statemanager.integration import redelivery


@pytest.fixture
def app(key):
    app = Celery("keeper", broker="memory://", set_as_current=False)
    app.conf.task_default_queue = key  # the broker in memory is one for the whole process
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
    """Take the next message from the default queue, or from another."""
    with app.connection_for_read() as connection:
        queues = app.amqp.queues
        yield lambda name="": queues[app.conf.task_default_queue + name](connection.default_channel).get(no_ack=True)


def said(message):
    headers = {name: value for name, value in message.headers.items() if name != "compression"}
    routed = [message.delivery_info[name] for name in ("exchange", "routing_key")]
    return message.payload, headers, message.properties["correlation_id"], message.properties["priority"], routed


OPTIONS = {
    "nothing said": {},
    "compressed": {"compression": "gzip"},
    "later, with a priority": {"countdown": 60, "priority": 7},
    "headers of one's own": {"headers": {"mine": "é", "n": 1}},
    "links": {"link": {"task": "linked", "args": [], "kwargs": {}, "options": {}}},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_a_received_message_that_is_sent_again_is_the_same(app, task, receive, options):
    task.apply_async((1, "☃", {"a": [None]}), {"k": '"\\'}, **OPTIONS[options])
    first = receive()
    redelivery.resend(app, redelivery.of_message(first))
    again = receive()
    assert said(again) == said(first)
    assert again.payload[0] == [1, "☃", {"a": [None]}]


def test_it_is_sent_to_where_it_came_from(app, task, key, receive):
    task.apply_async(queue=f"{key}.other")
    redelivery.resend(app, redelivery.of_message(receive(".other")))
    assert receive(".other").headers["task"] == "kept.task"


def test_what_is_not_json_is_not_kept(app, task, receive):
    app.conf.accept_content = ["json", "pickle"]
    task.apply_async((1,), serializer="pickle")
    assert redelivery.of_message(receive()) is None


def test_what_says_it_is_json_and_is_not_is_not_kept_and_harms_nobody(app, key, receive):
    with app.producer_or_acquire() as producer:
        producer.publish(b"\xff\xfe", routing_key=key, content_type="application/json", content_encoding="utf-8")
    assert redelivery.of_message(receive()) is None


def test_what_is_too_long_is_not_kept(task, receive):
    task.apply_async(("x" * redelivery.MAX_BYTES,))
    assert redelivery.of_message(receive()) is None


def test_a_kept_message_names_its_task(task, receive):
    task.apply_async()
    text = redelivery.of_message(receive())
    assert redelivery.task_of(text) == "kept.task"
    assert json.loads(text)
