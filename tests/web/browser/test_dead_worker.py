"""The page of a job whose worker is killed, with real workers."""

from __future__ import annotations

import importlib
import os
import re
from datetime import datetime, timedelta, timezone

import pytest
from killable import kill, start_worker
from playwright.sync_api import expect
from servers import wait_for
from web_kit import Server, everyone

from celery_statemanager import leases

pytestmark = pytest.mark.xdist_group("browser")
pytest.importorskip("examples.broker", reason="the broker of the examples is not part of the wheel")

LEASE = 10.0
SLACK = 5.0
"""Seconds that a busy machine may take in addition."""

PROJECT = f"""
from pathlib import Path

from celery import Celery
from celery_statemanager import StatefulTask, StateManager
from examples import broker

HOME = Path(__file__).parent
app = Celery(__name__, broker="filesystem://", set_as_current=False)
app.conf.update(
    broker.settings(HOME), statemanager_store_url=f"sqlite:///{{HOME}}/states.db", statemanager_lease={LEASE},
    statemanager_sweep_interval=2.0, statemanager_progress_interval=0.0, task_ignore_result=True,
    worker_prefetch_multiplier=1,
)
states = StateManager(app)


@app.task(base=StatefulTask, bind=True, tag="resize", on_lost="requeue", shared=False)
def resize(self, number):
    self.state.progress(3, 10, "resizing")
    first = HOME / f"first-{{number}}"
    if not first.exists():
        first.touch()
        open(HOME / "gate").read()
"""
"""The first attempt of each row waits until its worker is killed, because nobody writes to the pipe."""


@pytest.fixture
def project(tmp_path, monkeypatch):
    name = f"project_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(PROJECT)
    os.mkfifo(tmp_path / "gate")
    monkeypatch.syspath_prepend(tmp_path)
    project = importlib.import_module(name)
    yield project
    project.states.store.close()
    project.app.close()


@pytest.fixture
def worker(project):
    """Start workers that are ready, with two processes each; kill those that are left at the end."""
    started = []

    def worker(name):
        started.append(start_worker(project.HOME, project.__name__, "-c", "2", "-n", f"{name}@test"))
        return started[-1]

    yield worker
    for process in started:
        kill(process)


@pytest.fixture
def server(project):
    running = Server(project.states.web(everyone))
    yield running
    running.stop()


def test_the_page_reports_a_killed_worker_and_another_one_ends_the_job(project, worker, open_page):
    victim = worker("victim")
    job = project.states.submit([project.resize.s(number) for number in range(2)], job_id="photos")
    page = open_page("/jobs/photos")
    expect(page.locator(".count[data-class=running]")).to_contain_text("2")
    worker("survivor")
    wait_for(lambda: project.states.store.get_worker(leases.SWEEPER), "no worker sweeps")
    kill(victim)
    killed_at = datetime.now(timezone.utc)
    reason = page.locator(".why li[data-code=silent]")
    expect(reason).to_contain_text(f"pid {victim.pid}, has been silent for", timeout=(LEASE + SLACK) * 1_000)
    reported_after = (datetime.now(timezone.utc) - killed_at).total_seconds()
    assert reported_after < LEASE + SLACK
    expect(reason.get_by_role("button")).to_have_text("rows 0–1")
    recovery = re.search(r"its rows are recovered at (\d\d:\d\d:\d\d) UTC", reason.inner_text())
    assert recovery is not None, reason.inner_text()
    expect(page).to_have_title("100% finished · photos")
    expect(page.locator(".status-line .phase")).to_have_text("finished")
    expect(reason).to_have_count(0)
    latest = datetime.strptime(recovery[1], "%H:%M:%S").replace(
        year=killed_at.year, month=killed_at.month, day=killed_at.day, tzinfo=timezone.utc
    )
    latest += timedelta(days=latest < killed_at - timedelta(hours=12))
    for state in job.list_states():
        assert state.attempt == 2
        assert state.finished
        assert state.timestamp < latest + timedelta(seconds=SLACK)
