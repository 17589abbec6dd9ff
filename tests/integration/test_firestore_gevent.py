"""Firestore in a gevent worker: a call of gRPC would block every greenlet and not end."""

import pytest
from workers import Worker

from celery_statemanager import Status

ROWS = 30


@pytest.fixture(scope="module")
def setting(settings):
    return settings("redis-firestore")


@pytest.fixture
def worker(setting):
    worker = Worker(setting.environment, "gevent", "greenlets", concurrency=ROWS)
    yield worker
    worker.stop()


@pytest.mark.full
def test_greenlets_write_and_wait_for_each_other(setting, worker):
    """All bodies wait for one another, so that none may be blocked by the calls of another."""
    tracked = setting.tracked
    job = tracked.states.submit([tracked.wait_for_all.s(50).set(queue="greenlets") for _ in range(ROWS)])
    summary = job.wait(100)
    assert summary.finished == ROWS, job.list_states()
    assert {each.status for each in job.list_states()} == {Status.FINISHED}
    assert "cannot write a state" not in worker.log.read_text()
    assert "Connection pool is full" not in worker.log.read_text()
