"""``monitor-state`` without a job draws all jobs."""

import re
from datetime import timedelta

import pytest

from celery_statemanager import Manager, Status
from celery_statemanager.cli.rendering.board import board_lines
from celery_statemanager.cli.rendering.text import glyphs_for, plain, width_of
from celery_statemanager.overview import Wanted, list_overviews
from celery_statemanager.records import to_datetime

GLYPHS = glyphs_for("utf-8", colour=False)


@pytest.fixture
def listed(store):
    """Return the overviews of a finished job, of one that has begun, and of one that waits."""
    Manager.create(store, "finished", num_tasks=1, tags=("a",), task_index=0).set_state("a", Status.FINISHED)
    Manager.create(store, "running", num_tasks=4, tags=("a",), task_index=0).set_state("a", Status.FINISHED)
    Manager.open(store, "running", task_index=1).set_state("a", Status.FAILED, "disk full")
    Manager.create(store, "waiting", num_tasks=2, tags=("a",))
    return list_overviews(store, Wanted(), 50)[0]


def drawn(store, listed, columns=80, rows=24, **options):
    now = to_datetime(store.now()) + timedelta(seconds=3)
    lines = board_lines(listed, now, columns, rows, GLYPHS, **{"more": False, "connected": True, **options})
    assert max(map(width_of, lines)) <= columns
    assert len(lines) <= rows
    return [plain(line) for line in lines]


def test_jobs_that_have_not_settled_come_first(store, listed):
    title, _, head, *jobs, hint = drawn(store, listed)
    assert title == "jobs · 1 waiting · 1 failing · 1 finished"
    assert head.split() == ["JOB", "STATUS", "DONE", "FINISHED", "FAILED", "LAST", "WRITE"]
    assert [line.split()[0] for line in jobs] == ["waiting", "running", "finished"]
    assert GLYPHS.failed in jobs[1]
    assert re.search(rf"{GLYPHS.finished}{{6,}}$", jobs[2])
    assert hint == "Ctrl-C stops watching; monitor-state JOB shows one job"


@pytest.mark.parametrize("columns", [30, 60, 80, 100, 160])
def test_the_board_fits_a_terminal(store, listed, columns):
    drawn(store, listed * 20, columns, rows=12, more=True)


def test_the_board_reports_what_it_does_not_show(store, listed):
    assert drawn(store, listed, 120, more=True)[-1].startswith("these are the newest 3; list-state lists more. ")
    assert "no connection, trying again" in drawn(store, listed, connected=False)[0]
    assert drawn(store, [])[2] == "no jobs yet"


def test_the_board_follows_the_jobs_until_ctrl_c(terminal, kept):
    manager = Manager.create(kept, "first", num_tasks=2, tags=("a",), task_index=0)
    shown = terminal()
    shown.wait_for(r"first[^\n]*waiting")
    manager.set_state("a", Status.FINISHED)
    Manager.create(kept, "second", num_tasks=2, tags=("a",))
    shown.wait_for(r"second[^\n]*waiting")
    shown.wait_for(r"first[^\n]*running[^\n]*50%")
    shown.interrupt()
    assert shown.end()[0] == 130


def test_options_of_a_job_need_a_job(terminal):
    shown = terminal("--tag", "a")
    code, text = shown.end()
    assert code == 2
    assert "--tag needs a job" in text
