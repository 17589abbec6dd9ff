"""Workers that stop: running tasks keep their lease, and waiting states are written."""

import signal
import sqlite3

import pytest
from servers import cut_connections

from celery_statemanager import leases
from celery_statemanager.leases import cell_name
from celery_statemanager.testing.kit import workers

PATIENCE = 40
REDIS = [("redis1-redis", pool) for pool in ("prefork", "threads", "gevent")]
SQLITE = [("folders-sqlite", pool) for pool in ("prefork", "threads", "gevent")]


def last_renewal(tracked, job):
    """Return when the worker that runs row 0 last renewed its lease; None if no worker lists the row."""
    name = cell_name(job.manager.ref, "work", 0)
    records = workers(tracked.states.store).values()
    return next((each.renewed_at for each in records if leases.Report.from_record(each).lists(name)), None)


@pytest.mark.places(*REDIS)
@pytest.mark.parametrize(
    ("how", "loses_broker"),
    [
        ("warm", False),
        ("warm", True),
        ("soft", False),
        ("soft", True),
    ],
)
@pytest.mark.full
def test_a_stopping_worker_renews_the_lease_of_its_running_tasks(
    tracked, start_worker, key, eventually, how, loses_broker
):
    worker = start_worker(key, TRACKED_SOFT_SHUTDOWN="60")
    job = tracked.states.submit([tracked.gate.s(key).set(queue=key)])
    eventually(lambda: tracked.notes(key))
    worker.process.send_signal(signal.SIGTERM if how == "warm" else signal.SIGQUIT)
    eventually(lambda: {"warm": "Warm shutdown", "soft": "Initiating Soft Shutdown"}[how] in worker.log.read_text())
    if loses_broker:
        cut_connections(tracked.app.conf.broker_url)
    last = eventually(lambda: last_renewal(tracked, job))
    for _ in range(2):
        last = eventually(lambda last=last: (now := last_renewal(tracked, job)) != last and now)
    (tracked.HOME / f"{key}.go").touch()
    assert job.wait(PATIENCE).finished == 1
    assert job.get_state("work", 0).attempt == 1


@pytest.mark.places(*SQLITE)
def test_a_stopping_worker_writes_states_that_wait_for_the_store(tracked, start_worker, key, eventually):
    worker = start_worker(key)
    job = tracked.states.submit([tracked.gate.s(key).set(queue=key)])
    eventually(lambda: tracked.notes(key))
    lock = sqlite3.connect(tracked.app.conf.statemanager_store_url.removeprefix("sqlite:///"), isolation_level=None)
    try:
        lock.execute("BEGIN IMMEDIATE")
        (tracked.HOME / f"{key}.go").touch()
        eventually(lambda: len(tracked.notes(key)) == 2)
        worker.process.terminate()
        eventually(lambda: "cannot write a state, will retry" in worker.log.read_text())
        lock.execute("ROLLBACK")
    finally:
        lock.close()
    assert job.wait(PATIENCE).finished == 1
    assert worker.process.wait(PATIENCE) == 0
    assert last_renewal(tracked, job) is None


@pytest.mark.places(("redis1-redis", "prefork"), ("rabbitmq-redis", "prefork"))
def test_a_task_requeued_by_a_cold_shutdown_begins_on_another_worker(tracked, start_worker, key, eventually):
    """The redelivery does not count as a duplicate of the stopped worker's run."""
    worker = start_worker(key)
    job = tracked.states.submit([tracked.late_gate.s(key).set(queue=key)])
    eventually(lambda: tracked.notes(key))
    eventually(lambda: last_renewal(tracked, job))
    start_worker(f"{key},another")
    worker.process.send_signal(signal.SIGQUIT)
    eventually(lambda: len(tracked.notes(key)) == 2)
    (tracked.HOME / f"{key}.go").touch()
    assert job.wait(PATIENCE).finished == 1
    assert tracked.notes(key) == ["begun 1", "begun 2", "ended 2"]
    assert job.get_state("work", 0).version == 3
