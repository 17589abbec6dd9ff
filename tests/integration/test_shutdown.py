"""Workers that are told to stop: what still runs keeps its lease, what still waits is written."""

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


def renewals(tracked, job):
    """When the worker that runs row 0 last renewed its lease; None if nobody lists the row."""
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
def test_a_worker_that_stops_keeps_the_lease_of_what_it_still_runs(tracked, victim, key, eventually, how, loses_broker):
    worker = victim(key, TRACKED_SOFT_SHUTDOWN="60")
    job = tracked.states.submit([tracked.gate.s(key).set(queue=key)])
    eventually(lambda: tracked.notes(key))
    worker.process.send_signal(signal.SIGTERM if how == "warm" else signal.SIGQUIT)
    eventually(lambda: {"warm": "Warm shutdown", "soft": "Initiating Soft Shutdown"}[how] in worker.log.read_text())
    if loses_broker:
        cut_connections(tracked.app.conf.broker_url)
    last = eventually(lambda: renewals(tracked, job))
    for _ in range(2):
        last = eventually(lambda last=last: (now := renewals(tracked, job)) != last and now)
    (tracked.HOME / f"{key}.go").touch()
    assert job.wait(PATIENCE).finished == 1
    assert job.get_state("work", 0).attempt == 1


@pytest.mark.places(*SQLITE)
def test_what_waits_for_the_store_is_written_before_the_worker_goes(tracked, victim, key, eventually):
    worker = victim(key)
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
    assert renewals(tracked, job) is None


@pytest.mark.places(("redis1-redis", "prefork"), ("rabbitmq-redis", "prefork"))
def test_what_a_cold_shutdown_gives_back_begins_elsewhere_at_once(tracked, victim, key, eventually):
    """Its redelivery is not taken for a duplicate of what the stopped worker ran."""
    worker = victim(key)
    job = tracked.states.submit([tracked.late_gate.s(key).set(queue=key)])
    eventually(lambda: tracked.notes(key))
    eventually(lambda: renewals(tracked, job))
    victim(f"{key},another")
    worker.process.send_signal(signal.SIGQUIT)
    eventually(lambda: len(tracked.notes(key)) == 2)
    (tracked.HOME / f"{key}.go").touch()
    assert job.wait(PATIENCE).finished == 1
    assert tracked.notes(key) == ["begun 1", "begun 2", "ended 2"]
    assert job.get_state("work", 0).version == 3
