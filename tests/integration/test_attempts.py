"""A message that is delivered more than once (rule R14): only one execution counts."""

import pytest
from conftest import load
from matrix import BEFORE_5_7
from servers import cut_connections

PATIENCE = 40
PREFORK, THREADS, GEVENT = (("redis1-redis", pool) for pool in ("prefork", "threads", "gevent"))


def received_again(worker, job):
    """Return whether a worker received the message of row 0 again and dropped it."""
    celery_id = f"{job.manager.ref.incarnation}.0.0"
    log = worker.log.read_text()
    return log.count(f"[{celery_id}] received") > 1 and f"not run: {celery_id} is duplicate" in log


def assert_ran_once(tracked, job, key):
    (tracked.HOME / f"{key}.go").touch()
    assert job.wait(PATIENCE).finished == 1
    assert tracked.notes(key) == ["begun 1", "ended 1"]
    assert job.get_state("work", 0).version == 2


@pytest.mark.places(PREFORK, THREADS)
@pytest.mark.parametrize("size", [0, pytest.param(100_000, marks=pytest.mark.full)])
def test_a_task_longer_than_the_visibility_timeout_runs_once(tracked, start_worker, key, eventually, size):
    worker = start_worker(key, TRACKED_VISIBILITY="2")
    job = tracked.states.submit([tracked.late_gate.s(key, padding="x" * size).set(queue=key)])
    eventually(lambda: received_again(worker, job))
    assert_ran_once(tracked, job, key)


@pytest.mark.places(PREFORK, GEVENT)
def test_a_task_runs_once_when_its_worker_loses_the_broker_connection(tracked, place, start_worker, key, eventually):
    if BEFORE_5_7 and place[1] == "prefork":
        pytest.skip("Celery before 5.7 loses track of running tasks when the connection breaks")
    worker = start_worker(key)
    job = tracked.states.submit([tracked.late_gate.s(key).set(queue=key)])
    eventually(lambda: tracked.notes(key))
    cut_connections(tracked.app.conf.broker_url)
    eventually(lambda: received_again(worker, job))
    assert_ran_once(tracked, job, key)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.places(("rabbitmq-redis", "prefork"))
def test_a_requeued_message_that_reaches_the_delivery_limit_of_its_queue_is_published_again(
    setting, start_worker, key, eventually, monkeypatch
):
    """RabbitMQ drops it silently after two deliveries. No worker consumes the queue until the state has been read."""
    monkeypatch.setenv("TRACKED_QUORUM", key)
    own = load(setting.environment)
    start_worker(key)
    job = own.states.submit([own.requeue_until_attempt.s(key, 3).set(queue=key)])
    sent_again = "requeued by the task: not ready; the broker did not deliver it again: sent again"
    eventually(lambda: own.notes(key) == ["begun 1", "begun 2"])
    own.app.control.cancel_consumer(key, destination=[f"{key}@test"])
    eventually(lambda: job.get_state("work", 0).message == sent_again, PATIENCE)
    own.app.control.add_consumer(key, destination=[f"{key}@test"])
    assert job.wait(PATIENCE).finished == 1
    assert job.get_state("work", 0).attempt == 3
    own.states.store.close()
    own.app.close()


@pytest.mark.skipif(
    not BEFORE_5_7, reason="Celery 5.7 and later keep track of running tasks when the connection breaks"
)
@pytest.mark.places(PREFORK)
def test_a_task_that_its_worker_lost_track_of_is_published_again(tracked, start_worker, key, eventually):
    start_worker(key)
    job = tracked.states.submit([tracked.late_gate.s(key).set(queue=key)])
    eventually(lambda: tracked.notes(key))
    cut_connections(tracked.app.conf.broker_url)
    eventually(lambda: job.get_state("work", 0).message)
    assert job.get_state("work", 0).message.startswith("sent again: its worker ")
    (tracked.HOME / f"{key}.go").touch()
    start_worker(key)
    assert job.wait(PATIENCE).finished == 1
    assert job.get_state("work", 0).attempt == 2
