"""Completion (rule R15) when the worker dies in each window: a callback has one id and takes effect once."""

from dataclasses import replace

import pytest
from conftest import load
from servers import running_redis

from celery_statemanager import Status, leases
from celery_statemanager.integration.binding import HEADER, Binding
from celery_statemanager.records import CALLBACK_ROW
from celery_statemanager.testing import Proxy
from celery_statemanager.testing.celery import published

PATIENCE = 40
WINDOWS = ["after_deciding", "after_publishing"]
USUAL = {("folders-sqlite", "after_deciding"), ("redis-redis", "after_publishing")}


def callbacks_run(tracked, job):
    return sorted(line.split()[0] for line in tracked.notes(f"callback.{job.id}"))


def cell_of(tracked, job, latch):
    return tracked.states.store.get_cell(job.manager.ref, latch, CALLBACK_ROW)


def assert_effective_once(tracked, job, eventually, *latches):
    eventually(lambda: callbacks_run(tracked, job) == sorted(latches))
    for latch in latches:
        eventually(lambda latch=latch: cell_of(tracked, job, latch).status == Status.FINISHED)
    eventually(lambda: not tracked.states.store.get_job(job.manager.ref.key).due)
    assert callbacks_run(tracked, job) == sorted(latches)


def is_left_to_a_sweep(tracked, job, latch):
    """Return whether a callback waits for a sweep, or was sent by one at least one renewal after its decision."""
    state = tracked.states.store.get_job(job.manager.ref.key).latches[latch]
    renewal = tracked.states.settings.lease * 1_000_000 / leases.RENEWALS
    return state.due or state.published_at - state.decided_at >= renewal


@pytest.mark.slow
@pytest.mark.parametrize("window", WINDOWS)
def test_a_callback_takes_effect_once_when_its_worker_dies(
    window, place, request, setting, tracked, pool, start_configured_worker, key, eventually
):
    if (place[0], window) not in USUAL and not request.config.getoption("--full"):
        pytest.skip("with --full")
    callback = tracked.callback.s().set(queue=pool)
    worker = start_configured_worker({**setting.environment, "TRACKED_FAULT": window}, "solo", key)
    job = tracked.states.submit([tracked.succeed.s(0).set(queue=key)], on_success=callback)
    assert worker.process.wait(PATIENCE) == -9
    assert window == "after_publishing" or is_left_to_a_sweep(tracked, job, "success")
    assert_effective_once(tracked, job, eventually, "success")


def test_a_callback_is_published_once_the_broker_is_available_again(settings, start_configured_worker, key, eventually):
    """The worker has a store of its own, because the sweep of another one would publish to another broker."""
    environment = settings("redis-redis").environment
    store = environment["TRACKED_STORE"].replace("prefix=", f"prefix={key}-")
    with running_redis() as server, Proxy("127.0.0.1", server.port) as proxy:
        direct, proxied = (f"redis://127.0.0.1:{port}/0" for port in (server.port, proxy.port))
        own = load({**environment, "TRACKED_STORE": store, "TRACKED_BROKER": direct})
        job = own.states.submit([own.gate.s(key)], on_success=own.callback.s())
        worker = start_configured_worker(
            {**environment, "TRACKED_STORE": store, "TRACKED_BROKER": proxied}, "solo", "celery"
        )
        eventually(lambda: own.notes(key))
        with proxy.down():
            (own.HOME / f"{key}.go").touch()
            eventually(lambda: "cannot publish the callbacks" in worker.log.read_text())
            assert own.states.store.get_job(job.manager.ref.key).due
        assert_effective_once(own, job, eventually, "success")
        worker.kill()
        own.states.store.close()
        own.app.close()


def test_callbacks_run_once_when_two_last_tasks_end_together(tracked, pool, key, submit, eventually):
    if pool == "solo":
        pytest.skip("a solo worker ends one task at a time")
    callback = tracked.callback.s()
    jobs = [
        submit([tracked.succeed.s(row) for row in range(2)], on_success=callback, on_settled=callback) for _ in range(8)
    ]
    for job in jobs:
        job.wait(PATIENCE)
    for job in jobs:
        assert_effective_once(tracked, job, eventually, "settled", "success")


def test_the_failure_callback_is_not_withdrawn_and_success_may_follow(tracked, pool, key, submit, eventually):
    if pool == "solo":
        pytest.skip("a solo worker cannot run another row while one waits")
    callback = tracked.callback.s()
    with published(tracked.app) as messages:
        job = submit(
            [tracked.fail_first_attempt.s(key), tracked.gate.s(key + "x")], on_success=callback, on_failure=callback
        )
    eventually(lambda: callbacks_run(tracked, job) == ["failure"])
    again = replace(Binding.from_header(messages[0].headers[HEADER]), publication=1)
    messages[0].headers[HEADER] = again.to_header()
    messages[0].redeliver()
    eventually(lambda: tracked.notes(key) == ["1", "2"])
    (tracked.HOME / f"{key}x.go").touch()
    assert job.wait(PATIENCE).finished == 2
    assert_effective_once(tracked, job, eventually, "failure", "success")


def test_a_failed_callback_ends_failed_and_is_not_due(tracked, pool, submit, eventually):
    with published(tracked.app) as messages:
        job = submit([tracked.succeed.s(0)], on_success=tracked.failing_callback.s())
    job.wait(PATIENCE)
    failed = eventually(lambda: (cell := cell_of(tracked, job, "success")) and cell.final and cell)
    assert (failed.status, failed.message) == (Status.FAILED, "ValueError: callback broken")
    assert len(messages) == 1
    assert callbacks_run(tracked, job) == ["success"]
    eventually(lambda: not tracked.states.store.get_job(job.manager.ref.key).due)  # marked after it was sent
