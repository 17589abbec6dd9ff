"""The same message more than once (rule R14): whatever the broker does, one execution counts."""

import pytest
from matrix import BEFORE_5_7
from servers import cut_connections

PATIENCE = 40
PREFORK, THREADS, GEVENT = (("redis1-redis", pool) for pool in ("prefork", "threads", "gevent"))


def received_again(worker, job):
    """Whether a worker has got the message of row 0 once more, or more often, and dropped it."""
    celery_id = f"{job.manager.ref.incarnation}.0.0"
    log = worker.log.read_text()
    return log.count(f"[{celery_id}] received") > 1 and f"not run: {celery_id} is duplicate" in log


def check_one_run(tracked, job, key):
    (tracked.HOME / f"{key}.go").touch()
    assert job.wait(PATIENCE).finished == 1
    assert tracked.notes(key) == ["begun 1", "ended 1"]
    assert job.get_state("work", 0).version == 2


@pytest.mark.places(PREFORK, THREADS)
def test_a_task_longer_than_the_visibility_timeout_runs_once(tracked, victim, key, eventually):
    worker = victim(key, TRACKED_VISIBILITY="2")
    job = tracked.states.submit([tracked.late_gate.s(key).set(queue=key)])
    eventually(lambda: received_again(worker, job))
    check_one_run(tracked, job, key)


@pytest.mark.places(PREFORK, GEVENT)
def test_a_task_whose_worker_loses_its_broker_runs_once(tracked, place, victim, key, eventually):
    if BEFORE_5_7 and place[1] == "prefork":
        pytest.skip("Celery before 5.7 forgets what its children run when the connection breaks")
    worker = victim(key)
    job = tracked.states.submit([tracked.late_gate.s(key).set(queue=key)])
    eventually(lambda: tracked.notes(key))
    cut_connections(tracked.app.conf.broker_url)
    eventually(lambda: received_again(worker, job))
    check_one_run(tracked, job, key)


@pytest.mark.skipif(not BEFORE_5_7, reason="Celery since 5.7 knows what its children run when the connection breaks")
@pytest.mark.places(PREFORK)
def test_a_task_that_its_worker_has_forgotten_with_its_broker_is_sent_again(tracked, victim, key, eventually):
    victim(key)
    job = tracked.states.submit([tracked.late_gate.s(key).set(queue=key)])
    eventually(lambda: tracked.notes(key))
    cut_connections(tracked.app.conf.broker_url)
    eventually(lambda: job.get_state("work", 0).message)
    assert job.get_state("work", 0).message.startswith("sent again: its worker ")
    (tracked.HOME / f"{key}.go").touch()
    victim(key)
    assert job.wait(PATIENCE).finished == 1
    assert job.get_state("work", 0).attempt == 2
