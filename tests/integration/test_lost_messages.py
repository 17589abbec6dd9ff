"""Messages that the broker has lost: each row runs once or ends with a reason (rule R19)."""

from contextlib import closing

import pytest
from conftest import FAULT_PLACES, PATIENCE

from celery_statemanager import Status
from celery_statemanager.integration.worker.queues import BrokerQueues


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
