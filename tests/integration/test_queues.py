"""What a sweep learns from the brokers: which queue a message is in, and how many messages a queue has (rule R19)."""

from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest
from celery import Celery
from kombu.transport import memory, virtual
from servers import running_redis

from celery_statemanager import StatefulTask, StateManager
from celery_statemanager.integration.brokers import is_amqp
from celery_statemanager.integration.worker.queues import BrokerQueues, counts_messages


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

    def make(broker, **settings):
        app = Celery("queues", broker=broker, set_as_current=False, statemanager_store_url="memory://")
        app.conf.update(settings)
        apps.append(app)
        task = app.task(base=StatefulTask, shared=False, name="queues.work")(nothing)
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


def test_the_queue_of_each_message_is_known(make):
    here = make("memory://", task_routes={"queues.work": {"queue": "routed"}})
    work, states = here.task, here.states
    later = (datetime.now(timezone.utc) + timedelta(hours=1)).isoformat()
    members = [
        work.s(1),
        work.s(2).set(queue="mine"),
        work.s(3).set(countdown=60),
        work.s(4).set(eta=later),
        work.s(5) | states.tag(work.s(), "second").set(queue="after"),
        work.s(6) | states.tag(work.s(), "second").set(countdown=1),
    ]
    job = states.submit(members)
    record, queues = job._record, BrokerQueues(states)
    assert [queues.queue_of(record, "default", row) for row in range(6)] == [
        "routed",
        "mine",
        None,
        None,
        "routed",
        "routed",
    ]
    assert [queues.queue_of(record, "second", row) for row in (0, 4, 5)] == [None, "after", None]
    assert queues.queues_of(record) >= {"routed", "mine", "after"}
