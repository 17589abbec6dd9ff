"""A verdict that finds nothing says something only if it can find."""

from types import SimpleNamespace

import pytest

from celery_statemanager.models import Status
from celery_statemanager.records import CALLBACK_ROW, Latch
from celery_statemanager.stores import open_store
from celery_statemanager.testing import Grid
from celery_statemanager.testing.kit import FAILED, FINISHED
from chaos.verdict import findings, of_stream

BODY = [["1.0", "begun", "0", "1"], ["2.0", "ended", "0", "1"]]
CALLED = [["3.0", "callback-ended", "success"], ["3.0", "callback-ended", "settled"]]


@pytest.fixture
def grid():
    grid = Grid.create(open_store("memory://"), 1, ("work",))
    grid.update(lambda job: job.with_latches(**dict.fromkeys(job.latches, Latch("{}"))))
    return grid


def ended(grid, status=FINISHED, **fields):
    grid.begin("work", 0, owner="w")
    grid.end("work", 0, status, **fields)
    for latch in grid.fallen:
        grid.begin(latch, CALLBACK_ROW, owner="w")
        grid.end(latch, CALLBACK_ROW)


def found(grid, notes, task="sturdy"):
    return findings(grid.store, job_of(grid), [task], notes, max_lost=3)


def job_of(grid):
    return SimpleNamespace(manager=SimpleNamespace(ref=grid.ref), num_tasks=1)


def test_a_job_that_went_well(grid):
    ended(grid)
    assert found(grid, BODY + CALLED) == []


def test_a_row_that_is_not_done(grid):
    grid.begin("work", 0, owner="w")
    assert found(grid, BODY)[:2] == [
        "the job has not settled",
        "row 0 (sturdy): is not final: status 1, attempt 1, open True, None",
    ]


@pytest.mark.parametrize(
    ("status", "fields", "notes", "finding"),
    [
        (FINISHED, {}, [], "row 0 (sturdy): is FINISHED at attempt 1, but its body ended in []"),
        (FAILED, {}, BODY, "row 0 (sturdy): ended -1: None"),
        (int(Status.LOST), {"counts_as_loss": True}, [], "row 0 (sturdy): was given up after 1 losses"),
        (FINISHED, {}, [*BODY, *CALLED, CALLED[0]], "callback success ran to its end 2 times, lost 0 times"),
        (FAILED, {}, [*BODY, *CALLED], "callback success ran, though not all rows are FINISHED"),
    ],
)
def test_what_went_wrong(grid, status, fields, notes, finding):
    ended(grid, status, **fields)
    assert finding in found(grid, notes)


def test_a_callback_that_did_not_run(grid):
    grid.begin("work", 0, owner="w")
    grid.end("work", 0)
    assert "callback success ended 0, open False: None" in found(grid, BODY)


def test_what_a_subscriber_saw(grid):
    states = [grid.begin("work", 0, owner="w") and grid.state("work", 0), grid.end("work", 0) and grid.state("work", 0)]
    assert list(of_stream(grid.store, job_of(grid), states)) == []
    assert list(of_stream(grid.store, job_of(grid), states[:1])) == ["row 0: a subscriber saw the versions [1] of 2"]
    assert list(of_stream(grid.store, job_of(grid), states[::-1])) == [
        "row 0: a subscriber saw the versions [2, 1] of 2"
    ]


def test_a_finished_row_that_went_on(grid):
    finished = [grid.run("work", 0) and grid.state("work", 0)]
    grid.manager(0).set_state("work", 5)
    states = [*finished, grid.state("work", 0)]
    (finding,) = of_stream(grid.store, job_of(grid), states)
    assert finding.startswith("row 0 was FINISHED at attempt 1 and went on")
