"""The live display reports a worker that was killed, with real workers on a real terminal."""

import os
import re
import time

import pytest
from killable import kill, start_worker

from celery_statemanager import StateManager, Status, leases
from celery_statemanager.integration.worker.sweeping import sweep

pytest.importorskip("examples.broker", reason="the broker of the examples is not part of the wheel")

PATIENCE = 60.0
LEASE = 6.0
SLACK = 3.0
"""Seconds that a busy machine may take in addition."""

PROJECT = f"""
from celery import Celery
from celery_statemanager import StatefulTask, StateManager
from examples import broker

app = Celery("proj", broker="filesystem://")
app.conf.update(
    statemanager_store_url="sqlite:///states.db",
    statemanager_lease={LEASE},
    statemanager_sweep_interval=2.0,
    statemanager_progress_interval=0.0,
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    **broker.settings(HOME),
)
states = StateManager(app)


@app.task(base=StatefulTask, bind=True, tag="hold", shared=False)
def hold(self):
    self.state.progress(3, 10, "holding")
    open(HOME / "gate").read()
"""
"""A task that makes progress, then waits until a pipe is opened for writing."""


@pytest.fixture
def home(tmp_path):
    (tmp_path / "proj.py").write_text(f"from pathlib import Path\n\nHOME = Path({str(tmp_path)!r})\n{PROJECT}")
    os.mkfifo(tmp_path / "gate")
    return tmp_path


@pytest.fixture
def states(home, monkeypatch):
    """The state manager of ``proj``, in this process."""
    monkeypatch.chdir(home)
    names = {"__name__": "proj"}
    exec((home / "proj.py").read_text(), names)
    states: StateManager = names["states"]
    states.hold = names["hold"]
    yield states
    states.store.close()
    states.app.close()


@pytest.fixture
def worker(home):
    """Start workers of ``proj`` that are ready; kill those that are left at the end."""
    started = []

    def worker():
        started.append(start_worker(home, "proj", "-c", "1", "-n", "w@test"))
        return started[-1]

    yield worker
    for process in started:
        kill(process)


def test_the_display_reports_the_death_of_the_last_worker_within_one_lease(states, worker, terminal):
    victim = worker()
    job = states.submit([states.hold.s()])
    display = terminal(job.id)
    display.wait_for(r"ETA ")
    kill(victim)
    killed_at = time.monotonic()
    display.wait_for(r"(?s)no live worker(?:(?!\x1b\[H).)*Ctrl-C")
    assert time.monotonic() - killed_at < LEASE + SLACK
    frame = re.search(r"(?s)no live worker(?:(?!\x1b\[H).)*Ctrl-C", display.drawn)[0]
    assert "ETA" not in frame
    assert "a worker died" in frame
    worker()
    display.wait_for(r"LOST")
    code, left = display.end()
    assert (code, job.get_state().status) == (0, Status.LOST)
    assert re.search(r"0  lost with its worker", left)


@pytest.mark.full
def test_the_display_names_the_next_sweep_while_another_worker_lives(states, worker, terminal):
    victim = worker()
    job = states.submit([states.hold.s()])
    display = terminal(job.id)
    display.wait_for(r"ETA ")  # the record of the worker lists the task by then
    leases.renew(states.store, "other:1:a", leases.Report(), 2 * PATIENCE)
    kill(victim)
    killed_at = time.monotonic()
    display.wait_for(r"no progress for \d+s")
    assert time.monotonic() - killed_at < LEASE + SLACK
    assert leases.try_acquire(states.store, "other:1:a", PATIENCE)
    display.wait_for(r"waiting for the sweep at \d\d:\d\d:\d\d")
    assert sweep(states).marked == 1
    assert display.end()[0] == 0
