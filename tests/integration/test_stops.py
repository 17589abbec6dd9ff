"""Workers that end tasks themselves, at a shutdown or after a connection loss: no loss (rules R14, R16)."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from servers import cut_connections

from celery_statemanager import Status
from celery_statemanager.explain import explain
from celery_statemanager.leases import Report, cell_name
from celery_statemanager.testing.kit import workers

PATIENCE = 60
REDIS = ("redis1-redis", "prefork")
RABBITMQ = ("rabbitmq-redis", "prefork")
GREEN = ("folders-sqlite", "gevent")


def cell(tracked, job):
    return tracked.states.store.get_cell(job.manager.ref, "work", 0)


def reports(tracked):
    return [Report.from_record(each) for each in workers(tracked.states.store).values()]


def release(tracked, key, suffix="go"):
    (tracked.HOME / f"{key}.{suffix}").touch()


def stop_cold(worker, eventually):
    worker.process.send_signal(signal.SIGQUIT)
    worker.process.wait(PATIENCE)


def stop_softly(worker, eventually):
    worker.process.send_signal(signal.SIGQUIT)
    eventually(lambda: "Initiating Soft Shutdown" in worker.log.read_text())
    worker.process.wait(PATIENCE)


def stop_and_kill(worker, eventually):
    worker.process.terminate()
    eventually(lambda: "Warm shutdown" in worker.log.read_text())
    time.sleep(1)  # the time that an orchestrator grants
    worker.kill()


def kill_during_soft_shutdown(worker, eventually):
    worker.process.send_signal(signal.SIGQUIT)
    eventually(lambda: "Initiating Soft Shutdown" in worker.log.read_text())
    time.sleep(1)
    worker.kill()


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.places(REDIS, RABBITMQ)
@pytest.mark.parametrize(
    ("stop", "soft"),
    [(stop_cold, "0"), (stop_softly, "1"), (stop_and_kill, "0"), (kill_during_soft_shutdown, "50")],
)
def test_stops_of_workers_are_not_counted_as_losses(tracked, start_worker, key, eventually, stop, soft):
    job = tracked.states.submit([tracked.late_gate.s(key).set(queue=key)])
    for number in range(1, 5):
        worker = start_worker(key, TRACKED_SOFT_SHUTDOWN=soft)
        eventually(lambda number=number: len(tracked.notes(key)) == number, PATIENCE)
        stop(worker, eventually)
    release(tracked, key)
    start_worker(key)
    assert job.wait(PATIENCE).finished == 1
    assert (cell(tracked, job).attempt, cell(tracked, job).losses) == (5, 0)
    assert tracked.notes(key) == [*(f"begun {number}" for number in range(1, 6)), "ended 5"]


@pytest.mark.places(REDIS, RABBITMQ)
def test_a_stopped_task_that_must_not_run_again_is_lost(tracked, start_worker, key, eventually):
    worker = start_worker(key)
    job = tracked.states.submit([tracked.gate.s(key).set(queue=key)])
    eventually(lambda: tracked.notes(key))
    stop_cold(worker, eventually)
    start_worker(key)
    assert job.wait(PATIENCE).failed == 1
    assert cell(tracked, job).message.startswith("stopped with its worker ")
    assert (cell(tracked, job).status, cell(tracked, job).losses) == (Status.LOST, 0)
    eventually(lambda: not any(each.stopping for each in reports(tracked)))


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.places(REDIS)
def test_connection_losses_are_not_counted_as_losses(tracked, start_worker, key, eventually):
    worker = start_worker(key, TRACKED_CANCELS="1")
    job = tracked.states.submit([tracked.late_gate.s(key).set(queue=key)])
    for number in range(1, 5):
        eventually(lambda number=number: len(tracked.notes(key)) == number, PATIENCE)
        cut_connections(tracked.app.conf.broker_url)
    eventually(lambda: len(tracked.notes(key)) == 5, PATIENCE)
    release(tracked, key)
    assert job.wait(PATIENCE).finished == 1
    assert cell(tracked, job).losses == 0
    assert worker.process.poll() is None


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.places(REDIS)
def test_a_cancelled_body_that_still_runs_does_not_run_twice(tracked, start_worker, key, eventually):
    worker = start_worker(key, TRACKED_CANCELS="1", TRACKED_VISIBILITY="1")
    job = tracked.states.submit([tracked.late_gate_with_cleanup.s(key).set(queue=key)])
    eventually(lambda: tracked.notes(key))
    start_worker(f"{key},another", TRACKED_CANCELS="1", TRACKED_VISIBILITY="1")
    cut_connections(tracked.app.conf.broker_url)
    eventually(lambda: "Terminating it instead" in worker.log.read_text())
    name = cell_name(job.manager.ref, "work", 0)
    until = tracked.states.store.now() + 12_000_000  # two leases, in which the message is delivered again
    eventually(lambda: tracked.states.store.now() > until)
    assert any(name in each.running for each in reports(tracked))
    assert tracked.notes(key) == ["begun 1"]
    release(tracked, key, "clean")
    release(tracked, key)
    assert job.wait(PATIENCE).finished == 1
    assert tracked.notes(key) == ["begun 1", "ended 1", "begun 2", "ended 2"]
    assert cell(tracked, job).losses == 0


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.places(REDIS)
def test_a_task_that_kills_its_worker_is_lost_at_the_third_loss(tracked, start_worker, key, eventually):
    job = tracked.states.submit([tracked.kill_worker.s(key).set(queue=key)])
    for number in range(1, 4):
        start_worker(key).process.wait(PATIENCE)
        assert len(tracked.notes(key)) == number
    start_worker(f"{key}-sweeper")
    assert job.wait(PATIENCE).failed == 1
    assert cell(tracked, job).message.endswith("(loss 3 of 3)")


@pytest.mark.places(REDIS)
def test_recycled_children_are_not_counted_as_losses(tracked, start_worker, key, eventually):
    start_worker(key, "--max-tasks-per-child", "1")
    job = tracked.states.submit([tracked.succeed.s().set(queue=key) for _ in range(6)])
    assert job.wait(PATIENCE).finished == 6
    assert {state.attempt for state in job.list_states()} == {1}


@pytest.mark.slow
@pytest.mark.places(GREEN)
def test_a_greenlet_that_computes_does_not_delay_the_lease(tracked, start_worker, key, eventually):
    start_worker(key)
    start_worker(f"{key}-sweeper", pool="threads")
    job = tracked.states.submit([tracked.compute.s(key).set(queue=key)])
    eventually(lambda: tracked.notes(key))
    end = tracked.states.store.now() + 12_000_000  # two leases
    eventually(lambda: tracked.states.store.now() > end)
    assert job.get_state("work", 0).status == Status.STARTED
    release(tracked, key)
    assert job.wait(PATIENCE).finished == 1
    assert job.get_state("work", 0).version == 2


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.places(REDIS, ("redis1-redis", "threads"))
def test_messages_of_a_blocked_worker_are_published_again(tracked, setting, start_worker, key, eventually):
    still = start_worker(key)
    late = tracked.late_gate.s(key).set(queue=key, countdown=10)
    job = tracked.states.submit([late, tracked.gate.s(key).set(queue=key, countdown=10)])
    eventually(lambda: sum(len([*each.received]) for each in reports(tracked)) == 2)
    tracked.stop_main_loop.s(key).set(queue=key).apply_async()
    worker_id = eventually(
        lambda: next((each for each in workers(tracked.states.store) if f":{still.process.pid}:" in each), None)
    )
    blocked = f"received by worker {worker_id}, whose main loop has been blocked since"
    eventually(lambda: blocked in str(explain(tracked.states.store, tracked.states.store.get_job(job.manager.ref.key))))
    release(tracked, key)
    start_worker(key.replace("note", "other") + f",{key}", pool="threads")
    assert job.wait(PATIENCE).finished == 2
    release(tracked, key, "loop")
    assert sorted(tracked.notes(key)) == ["begun 1", "begun 1", "ended 1", "ended 1"]


@pytest.mark.places(("redis1-redis", "threads"), usual=1)
def test_a_worker_without_a_folder_for_temporary_files_works(tracked, start_worker, key, eventually):
    worker = start_worker(key, TRACKED_TEMPORARY="/proc", HOME="/nonexistent")
    job = tracked.states.submit([tracked.gate.s(key).set(queue=key)])
    eventually(lambda: any(cell_name(job.manager.ref, "work", 0) in each.running for each in reports(tracked)))
    release(tracked, key)
    assert job.wait(PATIENCE).finished == 1
    assert worker.stop() == 0
    assert worker.log.read_text().count("No usable temporary directory") == 1


EMBEDDED = """
import os, sys
import tracked
from celery.contrib.testing.worker import start_worker
from celery_statemanager.testing.kit import workers

for number in range(2):
    with start_worker(tracked.app, perform_ping_check=False, shutdown_timeout=30, queues="embedded"):
        job = tracked.states.submit([tracked.gate.s(f"embedded-{number}").set(queue="embedded")])
        while not any(f":{os.getpid()}:" in each for each in workers(tracked.states.store)):
            pass
        (tracked.HOME / f"embedded-{number}.go").touch()
        assert job.wait(30).finished == 1
    assert not any(name.startswith("STATEMANAGER_") for name in os.environ)
    assert not any(f":{os.getpid()}:" in each for each in workers(tracked.states.store))
"""


@pytest.mark.places(("folders-sqlite", "prefork"))
def test_an_embedded_worker_has_a_lease_and_leaves_nothing(tracked, setting):
    environment = {**os.environ, **setting.environment, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", EMBEDDED]
    done = subprocess.run(
        command, env=environment, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
