"""What a sweep learns from the brokers: which queue a message is in, and how many messages a queue has (rule R19)."""

from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest
from celery import Celery
from kombu import Exchange, Queue
from kombu.transport import memory, virtual
from servers import running_redis

from celery_statemanager import StatefulTask, StateManager
from celery_statemanager.integration.brokers import counts_messages, is_amqp
from celery_statemanager.integration.outbox import changed
from celery_statemanager.integration.outbox.envelope import with_headers
from celery_statemanager.integration.worker import queues as worker_queues
from celery_statemanager.integration.worker.queues import BrokerQueues
from celery_statemanager.records import Begin, Cell, Delivery, Place, Write


class UncountedChannel(memory.Channel):
    _size = virtual.Channel._size


class Uncounted(memory.Transport):
    """A transport that does not report the number of messages, as that of MongoDB."""

    Channel = UncountedChannel


def nothing(*_): ...


@pytest.fixture
def make():
    """Return a function that creates an app with a task, on the broker of that URL."""
    apps = []

    def make(broker, name="queues", **settings):
        app = Celery(name, broker=broker, set_as_current=False, statemanager_store_url="memory://")
        app.conf.update(settings)
        apps.append(app)
        task = app.task(base=StatefulTask, shared=False, name=f"{name}.work")(nothing)
        return SimpleNamespace(app=app, states=StateManager(app), task=task)

    yield make
    for app in apps:
        app.close()


def brokers(tmp_path):
    folders = dict.fromkeys(("data_folder_in", "data_folder_out", "control_folder"), str(tmp_path))
    yield "memory://", {}
    yield "filesystem://", {"broker_transport_options": folders}


def check_counts(here, eventually):
    queues = BrokerQueues(here.states)
    assert queues.message_count("nothing was sent here") == 0
    here.states.submit([here.task.s(row).set(queue="counted") for row in range(5)])
    eventually(lambda: queues.message_count("counted") == 5)
    assert queues.message_count("nothing was sent here") == 0
    assert queues.message_count("counted") == 5
    queues.close()


def test_brokers_without_a_server_count(make, tmp_path, eventually):
    for url, settings in brokers(tmp_path):
        check_counts(make(url, **settings), eventually)


def test_redis_counts_and_a_stopped_server_is_unknown(make, eventually):
    with running_redis() as server:
        here = make(server.url)
        check_counts(here, eventually)
    assert BrokerQueues(here.states).message_count("counted") is None


def test_rabbitmq_counts(make, settings, eventually):
    here = make(settings("rabbitmq-redis").environment["TRACKED_BROKER"])
    check_counts(here, eventually)
    assert is_amqp(here.app)


def test_a_transport_that_does_not_count_is_not_asked(make):
    here = make("memory://", broker_transport=f"{__name__}:Uncounted")
    assert not counts_messages(here.app)
    assert BrokerQueues(here.states).message_count("any") is None


def queues_by_row(queues, record, tag):
    places = [queues.place_of(record, tag, row) for row in range(record.num_tasks)]
    return [place and place.queue for place in places]


def test_the_queue_of_each_message_is_known(make):
    here = make("memory://", task_routes={"queues.work": {"queue": "routed"}})
    work, states = here.task, here.states
    members = [
        work.s(1),
        work.s(2).set(queue="mine"),
        work.s(5) | states.tag(work.s(), "second").set(queue="after"),
    ]
    record, queues = states.submit(members)._record, BrokerQueues(states)
    assert queues_by_row(queues, record, "default") == ["routed", "mine", "routed"]
    assert queues_by_row(queues, record, "second") == [None, None, "after"]
    assert queues.queues_of(record) >= {"routed", "mine", "after"}


def test_nothing_is_known_of_the_messages_of_another_app(make):
    here = make("memory://")
    record, queues = here.states.submit([here.task.s()])._record, BrokerQueues(make("memory://", name="other").states)
    queues._tracker.store = here.states.store
    assert queues.queues_of(record) == frozenset()
    assert queues.place_of(record, "default", 0) is None
    assert BrokerQueues(here.states).place_of(record, "default", 0) == Place("celery", in_order=True)


def test_nothing_is_known_of_messages_that_are_not_in_a_queue_of_their_name(make):
    """Celery publishes a task with an eta for a quorum queue to an exchange that delays it."""
    here = make("memory://")
    here.app.conf.task_queues = [Queue("routed", Exchange("delaying", "topic"), routing_key="0.1.routed")]
    sent = here.task.s().set(exchange="delaying", routing_key="0.1.routed", declare=[])
    record, queues = here.states.submit([sent])._record, BrokerQueues(here.states)
    assert (queues.queues_of(record), queues.place_of(record, "default", 0)) == (frozenset(), None)


def test_a_message_with_an_eta_is_delayed_until_then(make):
    here = make("memory://")
    later = datetime.now(timezone.utc) + timedelta(hours=1)
    moment = round(later.timestamp() * 1_000_000)
    members = [here.task.s().set(eta=each) for each in (later.isoformat(), later.replace(tzinfo=None), later)]
    members += [here.task.s().set(countdown=60), here.task.s()]
    record, queues = here.states.submit(members)._record, BrokerQueues(here.states)
    until = [queues.place_of(record, "default", row).delayed_until for row in range(5)]
    assert until[:3] == [moment] * 3
    assert until[3] == moment, "no more is known than the last time of all rows"
    assert until[4] == 0


@pytest.mark.parametrize(("options", "in_order"), [({}, True), ({"priority": 0}, False), ({"countdown": 1}, False)])
def test_messages_without_an_eta_and_a_priority_keep_their_order(make, options, in_order):
    here = make("memory://")
    record = here.states.submit([here.task.s().set(**options)])._record
    assert BrokerQueues(here.states).place_of(record, "default", 0).in_order is in_order


def test_messages_in_folders_keep_no_order(make, tmp_path):
    """Their names contain a clock of the host that has published them."""
    for url, settings in brokers(tmp_path):
        here = make(url, **settings)
        record, queues = here.states.submit([here.task.s()])._record, BrokerQueues(here.states)
        assert queues.place_of(record, "default", 0).in_order is queues.keeps_order is (url == "memory://")


def test_the_countdown_of_a_later_stage_counts_from_its_publication(make, monkeypatch):
    here = make("memory://")
    chains = [here.task.s() | here.states.tag(here.task.s(), "second").set(countdown=60) for _ in range(3)]
    record, store = here.states.submit(chains)._record, here.states.store

    def write(row, status, **others):
        reply = store.write(record.ref, Write("default", row, status, **others))
        return reply.cell.timestamp

    for row in range(2):
        store.begin(record.ref, Begin(tag="default", task_index=row))
        write(row, 100, attempt=1, ends_attempt=True)
    ended = [store.get_cell(record.ref, "default", row).timestamp for row in range(2)]
    again = store.write(record.ref, Write.sent_back("second", 1, "why", attempt=0)).cell.timestamp
    queues = BrokerQueues(here.states)
    until = [queues.place_of(record, "second", row).delayed_until for row in range(2)]
    assert until == [ended[0] + 60_000_000, again + 60_000_000]
    monkeypatch.setattr(worker_queues, "MOST_READS", 2)
    assert queues.place_of(record, "second", 0).delayed_until > store.now() + 55_000_000


def test_the_countdown_of_a_rerun_row_counts_from_its_reset(make):
    here = make("memory://")
    job, store = here.states.submit([here.task.s().set(countdown=60)]), here.states.store
    store.write(job.manager.ref, Write("default", 0, -1))
    job.rerun("failed")
    reset_at = store.get_cell(job.manager.ref, "default", 0).timestamp
    place = BrokerQueues(here.states).place_of(store.get_job(job.manager.ref.key), "default", 0)
    assert place.delayed_until >= reset_at + 60_000_000


RETRY = Delivery(0, 0, 1)


@pytest.fixture
def place_of_retry(make):
    """Return a function that returns where the message of a retry waits, given what its cell keeps."""
    here = make("memory://")
    record = here.states.submit([here.task.s().set(countdown=60, queue="mine")])._record
    stored = here.states.blocks.messages(here.states.store, record.ref, 0)[0]
    queues = BrokerQueues(here.states)

    def place_of(kept=None, delivery=RETRY):
        text = kept(stored) if callable(kept) else kept
        cell = Cell(status=1, attempt=1, version=3, timestamp=record.created_at, delivery=delivery, kept=text)
        return queues.place_of(record, "default", 0, cell)

    return place_of


LATER = "2040-01-01T00:00:00+00:00"
IN_2040 = round(datetime.fromisoformat(LATER).timestamp() * 1_000_000)


def test_the_countdown_of_a_first_delivery_does_not_delay_its_retries(place_of_retry):
    assert place_of_retry() == Place("mine", in_order=True)
    assert place_of_retry(delivery=Delivery(1, 0, 2)) == Place("mine", in_order=True)
    assert place_of_retry(delivery=Delivery(1)).delayed_until


def test_a_retry_is_delayed_until_the_eta_that_is_kept(place_of_retry):
    assert place_of_retry(changed.eta_to_json("queues.work", LATER)) == Place("mine", IN_2040)


def test_a_retry_that_was_changed_waits_where_its_message_was_sent(place_of_retry):
    def elsewhere(message):
        given = {**message["publish"], "routing_key": "slow"}
        return changed.kept(with_headers({"task": message["task"], "body": "", "publish": given}, eta=LATER))

    assert place_of_retry(elsewhere) == Place("slow", IN_2040)


def test_the_place_of_a_retry_is_unknown_whose_message_was_not_kept(place_of_retry):
    assert place_of_retry(changed.TOO_LARGE) is None


def test_the_place_of_a_replacement_is_unknown(place_of_retry):
    """It may consist of several tasks, whose messages are sent one after the other."""
    assert place_of_retry(changed.kept, Delivery(0, 1)) is None
    assert place_of_retry(changed.kept, Delivery(0, 1, 1)).queue == "mine"
    assert place_of_retry(None, Delivery(0, 1, 1)) is None
