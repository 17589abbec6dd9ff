"""Ends of tasks that a sweep has presumed dead (rules R13, R15, R16)."""

import os
import signal

import pytest
from celery import chain
from test_lost import state_when, stop_outside_a_write

from celery_statemanager import Status

PATIENCE = 40
pytestmark = pytest.mark.slow(usual=1)


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("work_through", "step 20"),
        *(pytest.param(name, None, marks=pytest.mark.full) for name in ("gate", "retry_after_go")),
    ],
)
def test_a_task_that_was_presumed_dead_ends_with_its_own_status(
    tracked, setting, pool, start_worker, key, eventually, member, message
):
    worker = start_worker(key, pool="solo")
    callbacks = {name: tracked.callback.s().set(queue=pool) for name in ("on_success", "on_failure")}
    job = tracked.states.submit([getattr(tracked, member).s(key).set(queue=key)], results=True, **callbacks)
    eventually(lambda: tracked.notes(key))
    stop_outside_a_write(worker.process, tracked.states.store)
    assert state_when(job, lambda state: state.terminal).status == Status.LOST
    eventually(lambda: len(tracked.notes(f"callback.{job.id}")) == 1)
    (tracked.HOME / f"{key}.go").touch()
    os.kill(worker.process.pid, signal.SIGCONT)
    done = state_when(job, lambda state: state.finished)
    assert (done.message, done.fraction) == (message, 1.0)
    assert job.summary().failed == 0
    assert job.get(PATIENCE) == [{"attempt": 1} if member == "gate" else None]
    told = eventually(lambda: (notes := tracked.notes(f"callback.{job.id}")) and len(notes) == 2 and notes)
    assert sorted(line.split()[0] for line in told) == ["failure", "success"]


def test_the_stage_after_one_that_was_presumed_dead_runs(tracked, setting, pool, start_worker, key, eventually):
    worker = start_worker(key, pool="solo")
    stages = [tracked.gate.s(key).set(queue=key), tracked.second.s().set(queue=pool)]
    job = tracked.states.submit([chain(*stages)], on_success=tracked.callback.s().set(queue=pool))
    eventually(lambda: tracked.notes(key))
    stop_outside_a_write(worker.process, tracked.states.store)
    assert state_when(job, lambda state: state.terminal).status == Status.LOST
    assert job.wait(PATIENCE).failed == 1
    (tracked.HOME / f"{key}.go").touch()
    os.kill(worker.process.pid, signal.SIGCONT)
    eventually(lambda: job.summary().finished == 2)
    eventually(lambda: tracked.notes(f"callback.{job.id}"))
    assert tracked.notes(key) == ["begun 1", "ended 1"]
