"""Completion (rule R15) in each window where its worker may die: published at least once, one id, effective once."""

import pytest
from conftest import load
from servers import running_redis

from celery_statemanager import Status, leases
from celery_statemanager.records import CALLBACK_ROW
from celery_statemanager.testing import Proxy
from celery_statemanager.testing.celery import published

PATIENCE = 40
WINDOWS = ["after_deciding", "after_publishing"]
USUAL = {("folders-sqlite", "after_deciding"), ("redis-redis", "after_publishing")}


def ran(tracked, job):
    return sorted(line.split()[0] for line in tracked.notes(f"callback.{job.id}"))


def cell_of(tracked, job, latch):
    return tracked.states.store.get_cell(job.manager.ref, latch, CALLBACK_ROW)


def effective_once(tracked, job, eventually, *latches):
    eventually(lambda: ran(tracked, job) == sorted(latches))
    for latch in latches:
        eventually(lambda latch=latch: cell_of(tracked, job, latch).status == Status.FINISHED)
    eventually(lambda: not tracked.states.store.get_job(job.manager.ref.key).due)
    assert ran(tracked, job) == sorted(latches)


def left_to_a_sweep(tracked, job, latch):
    """Whether a callback waits for a sweep, or was sent by one: no sooner than a renewal after its latch fell."""
    fallen = tracked.states.store.get_job(job.manager.ref.key).latches[latch]
    renewal = tracked.states.settings.lease * 1_000_000 / leases.RENEWALS
    return fallen.due or fallen.published_at - fallen.decided_at >= renewal


@pytest.mark.slow
@pytest.mark.parametrize("window", WINDOWS)
def test_a_worker_that_dies_in_the_window(window, place, request, setting, tracked, pool, hired, key, eventually):
    if (place[0], window) not in USUAL and not request.config.getoption("--full"):
        pytest.skip("with --full")
    done = tracked.callback.s().set(queue=pool)
    victim = hired({**setting.environment, "TRACKED_FAULT": window}, "solo", key)
    job = tracked.states.submit([tracked.succeed.s(0).set(queue=key)], on_success=done)
    assert victim.process.wait(PATIENCE) == -9
    assert window == "after_publishing" or left_to_a_sweep(tracked, job, "success")
    effective_once(tracked, job, eventually, "success")


def test_the_broker_is_down_when_the_last_task_ends(settings, hired, key, eventually):
    """The worker is alone with its store: another one's sweep would publish into another broker."""
    environment = settings("redis-redis").environment
    store = environment["TRACKED_STORE"].replace("prefix=", f"prefix={key}-")
    with running_redis() as server, Proxy("127.0.0.1", server.port) as proxy:
        near, far = (f"redis://127.0.0.1:{port}/0" for port in (server.port, proxy.port))
        own = load({**environment, "TRACKED_STORE": store, "TRACKED_BROKER": near})
        job = own.states.submit([own.gate.s(key)], on_success=own.callback.s())
        worker = hired({**environment, "TRACKED_STORE": store, "TRACKED_BROKER": far}, "solo", "celery")
        eventually(lambda: own.notes(key))
        with proxy.down():
            (own.HOME / f"{key}.go").touch()
            eventually(lambda: "stay due" in worker.log.read_text())
            assert own.states.store.get_job(job.manager.ref.key).due
        effective_once(own, job, eventually, "success")
        worker.kill()
        own.states.store.close()
        own.app.close()


def test_two_last_tasks_at_once(tracked, pool, key, submit, eventually):
    if pool == "solo":
        pytest.skip("a solo worker ends one task at a time")
    done = tracked.callback.s()
    jobs = [submit([tracked.succeed.s(row) for row in range(2)], on_success=done, on_settled=done) for _ in range(8)]
    for job in jobs:
        job.wait(PATIENCE)
    for job in jobs:
        effective_once(tracked, job, eventually, "settled", "success")


def test_a_failure_is_not_taken_back_and_success_may_follow(tracked, pool, key, submit, eventually):
    if pool == "solo":
        pytest.skip("a solo worker cannot be held by one row and run another")
    done = tracked.callback.s()
    with published(tracked.app) as messages:
        job = submit([tracked.fail_at_first.s(key), tracked.gate.s(key + "x")], on_success=done, on_failure=done)
    eventually(lambda: ran(tracked, job) == ["failure"])
    messages[0].redeliver()
    eventually(lambda: tracked.notes(key) == ["1", "2"])
    (tracked.HOME / f"{key}x.go").touch()
    assert job.wait(PATIENCE).finished == 2
    effective_once(tracked, job, eventually, "failure", "success")


def test_a_callback_that_fails_says_so_and_may_be_sent_again(tracked, pool, submit, eventually):
    with published(tracked.app) as messages:
        job = submit([tracked.succeed.s(0)], on_success=tracked.failing_callback.s())
    job.wait(PATIENCE)
    failed = eventually(lambda: (cell := cell_of(tracked, job, "success")) and cell.final and cell)
    assert (failed.status, failed.message) == (Status.FAILED, "ValueError: callback broken")
    assert len(messages) == 1
    assert ran(tracked, job) == ["success"]
    eventually(lambda: not tracked.states.store.get_job(job.manager.ref.key).due)  # marked after it was sent
