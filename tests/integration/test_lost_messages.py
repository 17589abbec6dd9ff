"""Messages that the broker has lost: each row runs once or ends with a reason (rule R19)."""

import os
import signal
import time
from contextlib import closing

import pytest
from conftest import FAULT_PLACES, PATIENCE
from servers import cut_connections

from celery_statemanager import Status, put_back
from celery_statemanager.integration.worker.queues import BrokerQueues
from celery_statemanager.records import to_datetime


def purge(tracked, queue):
    """Remove the messages of a queue, as a broker that is restarted without persistence does."""
    with tracked.app.connection_for_write() as connection:
        return connection.default_channel.queue_purge(queue)


def message_count(tracked, queue):
    with closing(BrokerQueues(tracked.states)) as queues:
        return queues.message_count(queue)


def runs(tracked, key, rows):
    return [len(tracked.notes(f"{key}.{row}")) for row in range(rows)]


@pytest.mark.slow
@pytest.mark.places(*FAULT_PLACES)
def test_messages_that_the_broker_has_lost_are_published_again(tracked, setting, pool, key, start_worker):
    job = tracked.states.submit([tracked.count.s(f"{key}.{row}").set(queue=key) for row in range(6)])
    assert purge(tracked, key) == 6
    start_worker(key)
    assert job.wait(PATIENCE).finished == 6
    assert runs(tracked, key, 6) == [1] * 6


@pytest.mark.slow
@pytest.mark.places(*FAULT_PLACES)
def test_the_next_stage_that_the_broker_has_lost_is_published_again(
    tracked, setting, pool, key, start_worker, eventually
):
    later = tracked.states.tag(tracked.count.s(), "second").set(queue=f"{key}.later")
    job = tracked.states.submit([tracked.succeed.s(f"{key}.{row}").set(queue=key) | later for row in range(4)])
    start_worker(key)
    eventually(lambda: job.summary("work").finished == 4)
    eventually(lambda: message_count(tracked, f"{key}.later") == 4)
    purge(tracked, f"{key}.later")
    start_worker(f"{key}.later")
    assert job.wait(PATIENCE).finished == 8
    assert runs(tracked, key, 4) == [1] * 4


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.places(*FAULT_PLACES[1:], FAULT_PLACES[0])
def test_a_retry_that_the_broker_has_lost_is_published_again(tracked, setting, pool, key, start_worker, eventually):
    later = f"{key}.later"
    job = tracked.states.submit([tracked.retry_in.s(f"{key}.{row}", later, row).set(queue=key) for row in range(4)])
    start_worker(key)
    eventually(lambda: message_count(tracked, later) == 4)
    purge(tracked, later)
    start_worker(later)
    assert job.wait(PATIENCE).finished == 4
    assert [tracked.notes(f"{key}.{row}") for row in range(4)] == [["begun 1", "begun 2"]] * 4


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.places(*FAULT_PLACES)
def test_a_stage_with_a_countdown_that_the_broker_has_lost_is_published_again(
    tracked, setting, pool, key, start_worker, eventually
):
    later = tracked.states.tag(tracked.count.s(), "second").set(queue=f"{key}.later", countdown=2)
    job = tracked.states.submit([tracked.succeed.s(f"{key}.{row}").set(queue=key) | later for row in range(2)])
    start_worker(key)
    eventually(lambda: message_count(tracked, f"{key}.later") == 2)
    purge(tracked, f"{key}.later")
    start_worker(f"{key}.later")
    assert job.wait(PATIENCE).finished == 4
    assert runs(tracked, key, 2) == [1] * 2


@pytest.mark.slow
@pytest.mark.places(*FAULT_PLACES[1:], FAULT_PLACES[0])
def test_a_callback_that_the_broker_has_lost_is_published_again(tracked, setting, pool, key, start_worker, eventually):
    callback = tracked.callback.s().set(queue=f"{key}.callbacks")
    job = tracked.states.submit([tracked.succeed.s().set(queue=pool)], on_success=callback)
    assert job.wait(PATIENCE).finished == 1
    eventually(lambda: message_count(tracked, f"{key}.callbacks") == 1)
    purge(tracked, f"{key}.callbacks")
    start_worker(f"{key}.callbacks")
    eventually(lambda: tracked.notes(f"callback.{job.id}"))
    eventually(lambda: not tracked.states.store.get_job(job.manager.ref.key).due)
    assert len(tracked.notes(f"callback.{job.id}")) == 1


@pytest.mark.slow
@pytest.mark.places(*FAULT_PLACES)
def test_a_plain_task_whose_message_is_lost_ends_lost(tracked, setting, pool, key, start_worker):
    job = tracked.states.submit([tracked.plain.s(f"{key}.{row}").set(queue=key) for row in range(2)])
    assert purge(tracked, key) == 2
    start_worker(key)
    assert job.wait(PATIENCE).failed == 2
    state = job.get_state("plain", 0)
    assert (state.status, state.message) == (Status.LOST, f"its message was lost: queue {key!r} is empty")
    assert runs(tracked, key, 2) == [0, 0]


@pytest.mark.slow
@pytest.mark.places(*FAULT_PLACES)
def test_messages_that_wait_in_a_queue_are_not_published_again(tracked, setting, pool, key, start_worker, eventually):
    """A worker without the queue sweeps for two leases."""
    job = tracked.states.submit([tracked.count.s(f"{key}.{row}").set(queue=key) for row in range(3)])
    start_worker(f"{key}.other")
    began = tracked.states.store.now()
    lease = tracked.states.settings.lease * 1_000_000
    eventually(lambda: tracked.states.store.now() > began + 2.5 * lease)
    assert job.list_states() == []
    start_worker(key)
    assert job.wait(PATIENCE).finished == 3
    assert runs(tracked, key, 3) == [1] * 3


@pytest.fixture
def keep_busy(tracked, eventually):
    """Return a function that submits a job whose messages keep a queue of two slow workers from being empty."""
    jobs = []

    def keep_busy(queue, rows=600):
        members = [tracked.nap.s(0.3).set(queue=queue) for _ in range(rows)]
        jobs.append(tracked.states.submit(members, max_in_flight=12))
        eventually(lambda: jobs[-1].summary("work").finished)
        return jobs[-1]

    yield keep_busy
    for job in jobs:
        job.cancel()


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.places(("redis-redis", "threads"), ("rabbitmq-redis", "prefork"))
def test_a_message_is_found_that_was_lost_from_a_queue_that_is_never_empty(
    tracked, setting, pool, key, start_worker, keep_busy, eventually
):
    job = tracked.states.submit([tracked.count.s(f"{key}.{row}").set(queue=key) for row in range(2)])
    assert purge(tracked, key) == 2
    start_worker(key)
    keep_busy(key)
    counts = []

    def has_run():
        counts.append(message_count(tracked, key))
        return job.summary("work").finished == 2

    eventually(has_run, 90)
    state = job.get_state("work", 0)
    assert min(counts) > 0
    assert runs(tracked, key, 2) == [1, 1]
    lease = tracked.states.settings.lease
    began = to_datetime(tracked.states.store.get_job(job.manager.ref.key).created_at)
    assert (state.timestamp - began).total_seconds() > 3 * lease


def publications(tracked, job):
    """Return how often the messages of each row were published again."""
    cells = (tracked.states.store.get_cell(job.manager.ref, "work", row) for row in range(job.num_tasks))
    return [0 if cell is None else cell.delivery.publication for cell in cells]


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.places(("redis-redis", "threads"), ("redis-redis", "prefork"), ("rabbitmq-redis", "prefork"))
def test_messages_that_wait_while_later_ones_begin_are_not_published_again(
    tracked, setting, pool, key, start_worker, keep_busy, eventually
):
    """They have a priority, an eta or a rate limit, or a worker that is suspended for a moment has received them."""
    note = tracked.count.s
    members = [
        note(f"{key}.0").set(queue=key, priority=9),
        note(f"{key}.1").set(queue=key, countdown=40),
        *(tracked.rate_limited.s(f"{key}.limited").set(queue=key) for _ in range(2)),
        note(f"{key}.4").set(queue=f"{key}.other"),
    ]
    job = tracked.states.submit(members)
    first, second = start_worker(key), start_worker(f"{key},{key}.unused")
    for _ in range(50):
        tracked.app.send_task("tracked.nap", (0.3,), queue=key)  # not tracked
    keep_busy(key, rows=400)
    lease = tracked.states.settings.lease
    for worker in (first, second) * 3:
        os.kill(worker.process.pid, signal.SIGSTOP)
        time.sleep(lease * 0.6)
        os.kill(worker.process.pid, signal.SIGCONT)
        time.sleep(lease * 0.6)
    assert publications(tracked, job) == [0] * 5
    assert sum(len(tracked.notes(f"{key}.{row}")) for row in (0, 1)) <= 2
    job.cancel()


@pytest.mark.slow
@pytest.mark.places(("redis-redis", "prefork"), ("redis-redis", "threads"), usual=1)
def test_the_end_of_each_connection_of_a_worker_is_noted(tracked, setting, pool, key, start_worker, eventually):
    """A broker then puts messages back; see ``put_back``."""
    worker, store = start_worker(key), tracked.states.store
    job = tracked.states.submit([tracked.succeed.s().set(queue=key)])
    assert job.wait(PATIENCE).finished == 1
    for end_connection in (
        lambda: cut_connections(tracked.app.conf.broker_url),
        worker.process.terminate,
    ):
        before = store.now()
        end_connection()
        eventually(lambda before=before: put_back.noted_at(store) > before)
