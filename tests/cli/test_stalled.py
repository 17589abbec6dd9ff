"""How the commands show running tasks that do not move (rule R23)."""

import json
from datetime import timedelta

import pytest

from celery_statemanager.cli.model import JobModel
from celery_statemanager.cli.rendering.frame import Frame
from celery_statemanager.cli.rendering.header import View
from celery_statemanager.cli.rendering.text import PLAIN, plain
from celery_statemanager.leases import Report, cell_name
from celery_statemanager.models import Scope, State
from celery_statemanager.records import Write, to_datetime
from celery_statemanager.testing import Grid

PLACE = "resize.py:88 read_tile"
OWNER = "pod-1:4711:ab"


@pytest.fixture
def grid(store):
    """A job of 4 rows; row 2 runs on a live worker and has not moved for 4m 10s."""
    grid = Grid.submitted(store, 4, ("work",), "etl-42")
    for row in (1, 2):
        grid.begin("work", row, owner=OWNER, stall_after=120_000_000)
        grid.write("work", row, 40, message="page 4", attempt=1)
    names = [cell_name(grid.ref, "work", row) for row in (1, 2)]
    store.put_worker(OWNER, Report(running=names).to_json(), 30)
    since = store.now() - 250_400_000
    store.write(grid.ref, Write.stalled("work", 2, attempt=1, if_version=2, since=since, stands_in=PLACE))
    return grid


def test_why_state_tells_for_how_long_and_where(grid, command):
    text = " ".join(command("why-state", "etl-42").stdout.split())
    assert f"work 2: alive, but has not moved for 4m 10s; stands in {PLACE} (on pod-1, worker pid 4711, attempt" in text
    assert "work 1: running on pod-1" in text
    found = [json.loads(line) for line in command("why-state", "etl-42", "--format", "json").stdout.splitlines()]
    assert {each["taskIDs"]: each["code"] for each in found} == {"1": "running", "2": "stalled", "0,3": "queued"}


def test_show_state_lists_the_rows(grid, command):
    text = command("show-state", "etl-42").stdout
    assert "stalled     1 running cell, alive but not moving: 2\n" in text
    assert "40%          stalled · page 4; stands in " in text
    found = json.loads(command("show-state", "etl-42", "--format", "json").stdout)
    assert (found["stalled"], found["stalledIDs"]) == (1, "2")
    assert {state["taskID"]: state["stalled"] for state in found["states"]} == {1: False, 2: True}


def test_monitor_state_prints_the_mark(grid, command):
    lines = command("monitor-state", "etl-42", "--no-follow", "--format", "json").stdout.splitlines()
    marked = [event for event in map(json.loads, lines) if event["stalled"]]
    assert [(event["taskID"], event["message"]) for event in marked] == [(2, f"page 4; stands in {PLACE}")]


def test_the_display_counts_stalled_tasks_and_keeps_the_time_of_their_last_move(grid):
    model = JobModel(grid.job, Scope())
    began = to_datetime(grid.job.created_at)

    def apply(version, seconds, message, *, stalled):
        at = began + timedelta(seconds=seconds)
        model.apply(State("etl-42", 2, "work", 40, message, None, at, version, stalled=stalled))
        return "\n".join(plain(line) for line in Frame(PLAIN).draw(View(model, began + timedelta(0, 300)), 100, 20))

    assert "stalled" not in apply(2, 50, "page 4", stalled=False)
    text = apply(3, 290, f"page 4; stands in {PLACE}", stalled=True)
    assert " 1 running task stalled: alive, but not moving; see why-state\n" in text
    assert f"40%    4m  stalled {PLAIN.dot} page 4; stands in {PLACE}" in text
    assert "stalled" not in apply(4, 295, "page 5", stalled=False)
