"""``liveness`` determines from the worker records whether live workers process a job."""

from dataclasses import replace

import pytest

from celery_statemanager import leases
from celery_statemanager.leases import Received, Report, cell_name
from celery_statemanager.liveness import Activity, Liveness, liveness
from celery_statemanager.records import ClaimRequest, new_job
from celery_statemanager.testing import Grid, WrappedStore

LEASE = 30.0


@pytest.fixture
def job(store):
    return Grid.submitted(store, 4, ("scan",), "etl").job


def run(store, worker, *cells, received=(), cut=()):
    leases.renew(store, worker, Report([*cells], received=[*received], cut=cut), LEASE)


def activity(store, job):
    return liveness(store, job).activity


def test_a_store_without_workers_has_no_worker_for_the_job(store, job):
    assert liveness(store, job) == Liveness(Activity.NO_WORKER)


@pytest.mark.parametrize("kind", ["runs", "has received"])
def test_a_worker_that_runs_or_has_received_a_task_works_on_the_job(store, job, kind):
    if kind == "runs":
        run(store, "w1", cell_name(job.ref, "scan", 1))
    else:
        run(store, "w1", received=[Received(job.ref, "scan", 1, "message")])
    found = liveness(store, job)
    assert (found.activity, found.lease_until) == (Activity.WORKING, store.now() + 30_000_000)


def test_a_job_whose_tasks_no_live_worker_has_is_idle(store, job):
    other = store.create_job(new_job("other", 4, ("scan",)))
    run(store, "w1", cell_name(other.ref, "scan", 1))
    assert activity(store, job) is Activity.IDLE


def test_a_worker_with_an_incomplete_record_counts_as_working(store, job):
    large = [Received(replace(job, incarnation="f" * 16).ref, "scan", row, "x" * leases.MOST_BYTES) for row in (1, 2)]
    run(store, "w1", received=large)
    assert activity(store, job) is Activity.WORKING


def test_a_worker_with_an_unreadable_record_counts_as_working(store, job):
    store.put_worker("w1", "not JSON", LEASE)
    assert activity(store, job) is Activity.WORKING


def test_a_job_has_no_worker_after_the_lease_of_the_last_one_expires(store, job, clock):
    run(store, "w1", cell_name(job.ref, "scan", 1))
    clock.advance(LEASE - 1)
    assert activity(store, job) is Activity.WORKING
    clock.advance(1)
    assert liveness(store, job) == Liveness(Activity.NO_WORKER, lost=True)


def test_the_time_of_the_next_sweep_is_known_while_workers_sweep(store, job, clock):
    run(store, "w1", cell_name(job.ref, "scan", 1))
    clock.advance(LEASE)
    run(store, "w2")
    leases.try_acquire(store, "w2", 15.0)
    due = store.now() + 15_000_000
    assert liveness(store, job) == Liveness(Activity.LOST, lost=True, sweep_at=due, lease=LEASE)
    clock.advance(20)
    assert liveness(store, job).sweep_at == store.now()
    clock.advance(10)
    assert liveness(store, job).sweep_at is None


def test_a_job_with_a_dead_and_a_live_worker_is_working_and_has_lost_tasks(store, job, clock):
    run(store, "w1", cell_name(job.ref, "scan", 1))
    clock.advance(LEASE)
    run(store, "w2", cell_name(job.ref, "scan", 2))
    found = liveness(store, job)
    assert (found.activity, found.lost) == (Activity.WORKING, True)


def test_a_job_that_is_being_published_needs_no_worker(store, clock):
    job = Grid.submitted(store, 4, ("scan",), "etl", published=0).job
    store.claim(job.ref, ClaimRequest(publisher="p", limit=1, lease=60))
    assert activity(store, job) is Activity.WORKING
    clock.advance(60)
    assert activity(store, job) is Activity.NO_WORKER


@pytest.mark.parametrize("kind", ["without Celery", "settled"])
def test_a_job_that_needs_no_worker_is_not_looked_up(kind, store, job):
    class NothingIsRead(WrappedStore):
        def list_workers(self, *_, **__):
            raise AssertionError("the worker records were read")

    latches = {name: replace(latch, decided_at=1) for name, latch in job.latches.items()}
    job = replace(job, flow=None) if kind == "without Celery" else job.with_latches(**latches)
    assert activity(NothingIsRead(store), job) is Activity.WORKING
