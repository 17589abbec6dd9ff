"""Ends of tasks that a sweep has presumed dead, and stages that finished without a report (rules R13, R15, R16)."""

import os
import signal

import pytest
from celery import chain
from test_lost import state_when, stop_outside_a_write

from celery_statemanager import Status

PATIENCE = 40
pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("member", "message"), [("gate", None), ("retry_after_go", None), ("work_through", "step 20")])
def test_a_task_that_was_presumed_dead_ends_with_its_own_status(
    tracked, setting, pool, start_worker, key, eventually, member, message
):
    worker = start_worker(key, pool="solo")
    callbacks = {name: tracked.callback.s().set(queue=pool) for name in ("on_success", "on_failure")}
    job = tracked.states.submit([getattr(tracked, member).s(key).set(queue=key)], **callbacks)
    eventually(lambda: tracked.notes(key))
    stop_outside_a_write(worker.process, tracked.states.store)
    assert state_when(job, lambda state: state.terminal).status == Status.LOST
    eventually(lambda: len(tracked.notes(f"callback.{job.id}")) == 1)
    (tracked.HOME / f"{key}.go").touch()
    os.kill(worker.process.pid, signal.SIGCONT)
    done = state_when(job, lambda state: state.finished)
    assert (done.message, done.fraction) == (message, 1.0)
    assert job.summary().failed == 0
    told = eventually(lambda: (notes := tracked.notes(f"callback.{job.id}")) and len(notes) == 2 and notes)
    assert sorted(line.split()[0] for line in told) == ["failure", "success"]


@pytest.mark.parametrize("first", ["gate", "late_gate"])
def test_a_stage_proves_that_the_stage_before_has_finished(
    tracked, setting, pool, start_worker, key, eventually, first
):
    worker = start_worker(key, pool="solo", TRACKED_FAULT="after_sending_next_stage")
    stages = [getattr(tracked, first).s(key).set(queue=key), tracked.second.s().set(queue=pool)]
    job = tracked.states.submit([chain(*stages)], on_success=tracked.callback.s().set(queue=pool))
    (tracked.HOME / f"{key}.go").touch()
    assert worker.process.wait(PATIENCE) == -signal.SIGKILL
    assert job.wait(PATIENCE).finished == 2
    eventually(lambda: tracked.notes(f"callback.{job.id}"))
    start_worker(key)
    assert tracked.notes(key) == ["begun 1", "ended 1"]


def test_a_stage_begins_although_the_one_before_was_marked_lost(tracked, setting, pool, start_worker, key, eventually):
    worker = start_worker(key, pool="solo", TRACKED_FAULT="after_sending_next_stage")
    stages = [tracked.gate.s(key).set(queue=key), tracked.second.s().set(queue=f"{key}.second")]
    job = tracked.states.submit([chain(*stages)], on_success=tracked.callback.s().set(queue=pool))
    (tracked.HOME / f"{key}.go").touch()
    assert worker.process.wait(PATIENCE) == -signal.SIGKILL
    assert state_when(job, lambda state: state.terminal).status == Status.LOST
    assert job.wait(PATIENCE).failed == 1
    start_worker(f"{key}.second")
    eventually(lambda: job.summary().finished == 2)
    eventually(lambda: tracked.notes(f"callback.{job.id}"))


def test_a_stage_proves_that_a_stage_whose_child_was_killed_has_finished(
    tracked, setting, start_worker, key, eventually
):
    start_worker(key, pool="prefork", TRACKED_FAULT="child_dies_after_sending_next_stage")
    stages = [tracked.gate.s(key).set(queue=key), tracked.second.s().set(queue=f"{key}.second")]
    job = tracked.states.submit([chain(*stages)])
    (tracked.HOME / f"{key}.go").touch()
    lost = state_when(job, lambda state: state.terminal)
    assert (lost.status, lost.message.partition(":")[0]) == (Status.LOST, "WorkerLostError")
    start_worker(f"{key}.second")
    eventually(lambda: job.summary().finished == 2)
    assert tracked.notes(key) == ["begun 1", "ended 1"]
