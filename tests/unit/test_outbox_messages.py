"""Messages that are made without being sent, stored in blocks, and published unchanged."""

import json
import uuid
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from decimal import Decimal

import pytest
from celery import Celery, Task
from celery.signals import before_task_publish
from kombu import Exchange, Queue

from celery_statemanager.errors import StoreError
from celery_statemanager.integration.binding import HEADER, Binding
from celery_statemanager.integration.outbox import blocks
from celery_statemanager.integration.outbox.blocks import BlockCache, BlockWriter
from celery_statemanager.integration.outbox.capture import Capture
from celery_statemanager.integration.outbox.envelope import from_json, messages_from_json, publish, to_json
from celery_statemanager.integration.outbox.making import MessageMaker
from celery_statemanager.records import JobKey, JobRef
from celery_statemanager.testing import WrappedStore

REF = JobRef(JobKey("job"), "f" * 16)
BINDING = Binding(REF, 3, "a")


@pytest.fixture
def app():
    app = Celery("made", broker="memory://", set_as_current=False)
    app.conf.task_default_queue = f"queue-{uuid.uuid4().hex}"
    yield app
    app.close()


@pytest.fixture
def task(app):
    @app.task(name="task", shared=False)
    def task(*_, **__): ...

    return task


@contextmanager
def hook(receiver):
    """Connect a receiver to the signal before a message is published."""
    before_task_publish.connect(receiver)
    try:
        yield
    finally:
        before_task_publish.disconnect(receiver)


def make(app, signature, **options):
    """Return the message of a task after it has been stored, and check that it was not sent."""
    bound = BINDING.bind(signature.clone().set(**options))
    with Capture(app) as capture:
        made = capture.make(BINDING, lambda producer: bound.apply_async(producer=producer), bound.options)
    assert received(app) is None
    return None if made is None else from_json(to_json(made))


def received(app, queue=None):
    """Return the next message in a queue of the broker; None if it is empty."""
    name = queue or app.conf.task_default_queue
    with app.connection_for_read() as connection:
        bound = app.amqp.queues[name](connection.default_channel)
        bound.declare()
        return bound.get(accept=["json", "pickle", "yaml", "msgpack", "application/data"])


def sent(app, envelope, queue=None):
    publish(app, envelope)
    return received(app, queue)


def test_a_message_is_published_as_celery_would_have_published_it(app, task):
    envelope = make(app, task.s(1, two="☃"), priority=3, reply_to="there")
    message = sent(app, envelope)
    assert message.payload[:2] == [[1], {"two": "☃"}]
    assert message.headers["id"] == BINDING.celery_task_id
    assert message.headers[HEADER] == BINDING.to_header()
    assert (message.properties["priority"], message.properties["reply_to"]) == (3, "there")
    assert message.properties["correlation_id"] == BINDING.celery_task_id
    direct = BINDING.bind(task.s(1, two="☃")).set(priority=3, reply_to="there")
    direct.apply_async()
    directly = received(app)
    assert directly.body == message.body
    assert {**directly.headers, HEADER: ""} == {**message.headers, HEADER: ""}


@pytest.mark.parametrize("protocol", [1, 2])
def test_both_protocols_of_celery_are_published(app, task, protocol):
    app.conf.task_protocol = protocol
    envelope = make(app, task.s(1))
    assert envelope["task"] == "task"
    body = sent(app, envelope).payload
    assert (body["args"] if protocol == 1 else body[0]) == [1]


def test_a_pickled_body_is_neither_decoded_nor_encoded_again(app, task):
    class Once:
        """A value that can be pickled once and never unpickled here."""

        pickled = 0

        def __reduce__(self):
            Once.pickled += 1
            return pytest.fail, ("it was decoded",)

    app.conf.accept_content = ["json"]
    envelope = make(app, task.s(Once()), serializer="pickle")
    assert envelope["base64"]
    for _ in range(2):
        message = sent(app, envelope)
        assert message.content_type == "application/x-python-serialize"
        assert message.content_encoding == "binary"
    assert Once.pickled == 1


def test_a_binary_body_is_published_unchanged(app, task):
    value = (Decimal("0.1"), b"\x00\xff\n", {1, 2})
    assert sent(app, make(app, task.s(value), serializer="pickle")).payload[0] == (value,)


@pytest.mark.parametrize("compression", ["gzip", "bzip2"])
def test_a_compressed_message_is_compressed_at_each_publication(app, task, compression):
    envelope = make(app, task.s("x" * 1_000), compression=compression)
    for _ in range(2):
        message = sent(app, envelope)
        assert "compression" in message.headers
        assert message.payload[0] == ["x" * 1_000]


def test_unusual_headers_are_kept(app, task):
    at = datetime(2026, 1, 31, 12, 0, 0, 1, timezone.utc)
    headers = {"at": at, "raw": b"\x00\xff", "nested": {"list": [1, None, "ß\n"]}, "price": Decimal("0.10"), "": 0}
    message = sent(app, make(app, task.s(), headers=headers))
    assert {name: message.headers[name] for name in headers} == headers


def test_a_header_of_a_hook_is_stored_once(app, task):
    calls = []

    def trace(headers, **_):
        calls.append(headers["id"])
        headers["trace"] = f"trace {len(calls)}"

    with hook(trace):
        envelope = make(app, task.s())
        assert [sent(app, envelope).headers["trace"] for _ in range(2)] == ["trace 1", "trace 1"]
    assert len(calls) == 1


def test_a_hook_that_removes_the_binding_does_not_untrack_the_message(app, task):
    def strip(headers, **_):
        headers.pop(HEADER, None)

    with hook(strip):
        envelope = make(app, task.s())
    assert sent(app, envelope).headers[HEADER] == BINDING.to_header()


def test_an_exchange_object_is_stored_by_its_name(app, task):
    topic = Exchange(f"topic-{uuid.uuid4().hex}", type="topic")
    queue = Queue(f"queue-{uuid.uuid4().hex}", topic, routing_key="orders.#")
    app.conf.task_queues = [Queue(app.conf.task_default_queue), queue]
    app.conf.task_routes = {"task": {"queue": queue.name, "exchange": topic, "routing_key": "orders.new"}}
    envelope = make(app, task.s())
    assert (envelope["publish"]["exchange"], envelope["queue"]) == (topic.name, queue.name)
    message = sent(app, envelope, queue.name)
    assert message.delivery_info["routing_key"] == "orders.new"


def test_the_queue_of_a_message_is_declared_at_each_publication(app, task):
    name = f"queue-{uuid.uuid4().hex}"
    envelope = make(app, task.s().set(queue=name))
    assert sent(app, envelope, name) is not None
    with app.connection_for_write() as connection:
        app.amqp.queues[name](connection.default_channel).delete()
    publish(app, envelope)
    with app.connection_for_read() as connection:
        assert connection.default_channel.basic_get(name) is not None


def seconds_until(text):
    return (datetime.fromisoformat(text) - datetime.now(timezone.utc)).total_seconds()


def test_relative_times_count_from_each_publication(app, task):
    envelope = make(app, task.s(), countdown=60, expires=90)
    past = "2026-01-31T12:00:00+00:00"
    envelope["publish"]["headers"].update(eta=past, expires=past)
    headers = sent(app, envelope).headers
    assert seconds_until(headers["eta"]) == pytest.approx(60, abs=5)
    assert seconds_until(headers["expires"]) == pytest.approx(90, abs=5)


def test_absolute_times_are_kept(app, task):
    eta, expires = (datetime.now(timezone.utc) + timedelta(hours=hours) for hours in (1, 2))
    envelope = make(app, task.s(), eta=eta, expires=expires)
    assert not {"eta_after", "expires_after"} & envelope.keys()
    headers = sent(app, envelope).headers
    assert [datetime.fromisoformat(headers[name]) for name in ("eta", "expires")] == [eta, expires]


def test_a_second_message_of_a_task_class_is_sent_at_once(app):
    class Audited(Task):
        def apply_async(self, *args, producer=None, **options):
            app.send_task("audit", ("before",), producer=producer)
            return super().apply_async(*args, producer=producer, **options)

    @app.task(name="audited", base=Audited, shared=False)
    def audited(): ...

    bound = BINDING.bind(audited.s())
    with Capture(app) as capture:
        envelope = capture.make(BINDING, lambda producer: bound.apply_async(producer=producer))
    assert received(app).headers["task"] == "audit"
    assert received(app) is None
    assert envelope["task"] == "audited"


def test_a_task_class_that_sends_nothing_has_no_message(app):
    class Silent(Task):
        def apply_async(self, *args, **options):
            return self.AsyncResult("another")

    @app.task(name="silent", base=Silent, shared=False)
    def silent(): ...

    assert make(app, silent.s()) is None


def test_a_task_class_may_change_what_it_gets(app):
    class Changing(Task):
        def apply_async(self, args=None, kwargs=None, *, link, **options):
            kwargs["seen"] = len(link)
            link.append(self.s())
            return super().apply_async(args, kwargs, link=link, **options)

    @app.task(name="changing", base=Changing, shared=False)
    def changing(**_): ...

    link = [changing.s()]
    members = [changing.s(row=row).set(link=link) for row in range(3)]
    with Capture(app) as capture:
        maker = MessageMaker(app, REF, capture)
        messages = [messages_from_json(maker.make(row, [member], ["a"]))[0] for row, member in enumerate(members)]
    assert [json.loads(message["body"])[1] for message in messages] == [{"row": row, "seen": 1} for row in range(3)]
    given = [(dict(member.kwargs), dict(member.options)) for member in members]
    assert given == [({"row": row}, {"link": link}) for row in range(3)]
    assert len(link) == 1


def test_an_error_of_a_task_class_does_not_affect_the_next_message(app, task):
    with Capture(app) as capture:
        with pytest.raises(ZeroDivisionError):
            capture.make(BINDING, lambda _: 1 / 0)
        bound = BINDING.bind(task.s(7))
        made = capture.make(BINDING, lambda producer: bound.apply_async(producer=producer))
        assert '"args"' not in made["body"]
        assert made["body"].startswith("[[7]")
        assert capture.make(BINDING, lambda _: None) is None, "the message before is not returned again"


def test_a_message_is_made_while_the_broker_is_away(task, app):
    app.conf.broker_url = "amqp://127.0.0.1:1//"
    bound = BINDING.bind(task.s(1))
    with Capture(app) as capture:
        assert capture.make(BINDING, lambda producer: bound.apply_async(producer=producer)) is not None


class CountingStore(WrappedStore):
    """Counts the reads of blocks."""

    reads = 0

    def get_block(self, ref, row):
        self.reads += 1
        return super().get_block(ref, row)


def stored(store, messages):
    writer = BlockWriter(store, REF)
    for message in messages:
        writer.add(to_json(message))
    writer.flush()
    return CountingStore(store)


def test_messages_are_stored_in_blocks_of_limited_size(store):
    sizes = [10, blocks.BLOCK_BYTES + 1, 10, *[blocks.BLOCK_BYTES // 4] * 9, 0]
    messages = [[{"body": f"{row}" + "x" * size}] for row, size in enumerate(sizes)]
    counting, cache = stored(store, messages), BlockCache()
    assert [cache.messages(counting, REF, row) for row in range(len(sizes))] == messages
    assert [cache.messages(counting, REF, row) for row in range(len(sizes))][::-1] == messages[::-1]
    starts = {store.get_block(REF, row)[0] for row in range(len(sizes))}
    assert counting.reads == len(starts) > 3
    assert 2 in starts, "a message that is larger than a block ends its block"


def test_texts_with_line_ends_belong_to_one_row(store):
    messages = [[{"body": "one\ntwo\r\n\u2028\u0085\x1e"}, {"body": "\n"}], [{"body": ""}]]
    counting = stored(store, messages)
    assert [BlockCache().messages(counting, REF, row) for row in range(2)] == messages


def test_a_cache_keeps_the_blocks_that_were_used_last(store, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)
    monkeypatch.setattr(blocks, "CACHED_BLOCKS", 2)
    counting, cache = stored(store, [[{"body": str(row)}] for row in range(3)]), BlockCache()
    for row, reads in ((0, 1), (1, 2), (0, 2), (2, 3), (0, 3), (1, 4)):
        assert cache.messages(counting, REF, row) == [{"body": str(row)}]
        assert counting.reads == reads


@pytest.mark.parametrize("row", [0, 2])
def test_a_message_that_is_not_in_the_store_is_reported(store, row):
    counting = stored(store, [[{"body": ""}]] * row)
    with pytest.raises(StoreError, match=f"the message of row {row} of job 'job' is not in the store"):
        BlockCache().messages(counting, REF, row)


def test_a_header_that_cannot_be_stored_is_reported(app, task):
    with Capture(app) as capture, pytest.raises(TypeError, match="a header of its message cannot be stored as JSON"):
        MessageMaker(app, REF, capture).make(0, [task.s().set(headers={"bad": object()})], ["a"])
