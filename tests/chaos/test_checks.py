"""The checks of a round detect each kind of violation."""

from types import SimpleNamespace

import pytest

from celery_statemanager.models import Status
from celery_statemanager.records import CALLBACK_ROW, Latch
from celery_statemanager.stores import open_store
from celery_statemanager.testing import Grid
from celery_statemanager.testing.kit import FAILED, FINISHED
from chaos.checks import job_violations, result_violations, stream_violations

TASK_NOTES = [["1.0", "begun", "0", "1"], ["2.0", "ended", "0", "1"]]
CALLBACK_NOTES = [["3.0", "callback-ended", "success", "1"], ["3.0", "callback-ended", "settled", "1"]]


@pytest.fixture
def grid():
    grid = Grid.create(open_store("memory://"), 1, ("work",))
    grid.update(lambda job: job.with_latches(**dict.fromkeys(job.latches, Latch("{}"))))
    return grid


def end_row_and_callbacks(grid, status=FINISHED, **fields):
    grid.begin("work", 0, owner="w")
    grid.end("work", 0, status, **fields)
    for latch in grid.decided:
        grid.begin(latch, CALLBACK_ROW, owner="w")
        grid.end(latch, CALLBACK_ROW)


def violations(grid, notes, task="requeued"):
    return job_violations(grid.store, job_of(grid), [task], notes, max_lost=3)


def job_of(grid):
    return SimpleNamespace(manager=SimpleNamespace(ref=grid.ref), num_tasks=1)


def test_a_correct_job_has_no_violations(grid):
    end_row_and_callbacks(grid)
    assert violations(grid, TASK_NOTES + CALLBACK_NOTES) == []


def test_an_unfinished_row_is_a_violation(grid):
    grid.begin("work", 0, owner="w")
    assert violations(grid, TASK_NOTES)[:2] == [
        "the job has not settled",
        "row 0 (requeued): is not final: status 1, attempt 1, open True, None",
    ]


@pytest.mark.parametrize(
    ("status", "fields", "notes", "violation"),
    [
        (FINISHED, {}, [], "row 0 (requeued): is FINISHED at attempt 1, but its task ended in attempts []"),
        (FAILED, {}, TASK_NOTES, "row 0 (requeued): ended -1: None"),
        (
            int(Status.LOST),
            {"counts_as_loss": True},
            [],
            "row 0 (requeued): was marked LOST after 1 losses, before the limit",
        ),
        (
            FINISHED,
            {},
            [*TASK_NOTES, *CALLBACK_NOTES, CALLBACK_NOTES[0]],
            "callback success ran to its end 2 times, lost 0 times",
        ),
        (FAILED, {}, [*TASK_NOTES, *CALLBACK_NOTES], "callback success ran, though not all rows are FINISHED"),
    ],
)
def test_a_wrong_end_is_a_violation(grid, status, fields, notes, violation):
    end_row_and_callbacks(grid, status, **fields)
    assert violation in violations(grid, notes)


def test_a_missing_callback_is_a_violation(grid):
    grid.begin("work", 0, owner="w")
    grid.end("work", 0)
    assert "callback success ended 0, open False: None" in violations(grid, TASK_NOTES)


def test_missing_and_unordered_versions_are_violations(grid):
    states = [grid.begin("work", 0, owner="w") and grid.state("work", 0), grid.end("work", 0) and grid.state("work", 0)]
    assert list(stream_violations(grid.store, job_of(grid), states)) == []
    assert list(stream_violations(grid.store, job_of(grid), states[:1])) == [
        "row 0: a subscriber received the versions [1] of 2"
    ]
    assert list(stream_violations(grid.store, job_of(grid), states[::-1])) == [
        "row 0: a subscriber received the versions [2, 1] of 2"
    ]


def test_the_late_end_of_a_lost_attempt_is_no_violation(grid):
    begun = grid.begin("work", 0, owner="w") and grid.state("work", 0)
    lost = grid.write("work", 0, -6, ends_attempt=True, presumed_dead=True) and grid.state("work", 0)
    grid.write("work", 0, FINISHED, attempt=1, ends_attempt=True)
    assert list(stream_violations(grid.store, job_of(grid), [begun, lost])) == []


@pytest.mark.parametrize(
    ("results", "violations"),
    [
        ({0: "value"}, []),
        ({}, ["the rows have the results {}, not {0: 'value'}"]),
        ({0: "another"}, ["the rows have the results {0: 'another'}, not {0: 'value'}"]),
        ({0: "value", 1: "value"}, ["the rows have the results {0: 'value', 1: 'value'}, not {0: 'value'}"]),
    ],
)
def test_another_result_than_that_of_each_finished_row_is_a_violation(grid, results, violations):
    grid.run("work", 0)
    job = job_of(grid)
    job.results = results.items
    assert list(result_violations(grid.store, job, ["requeued", "failing"])) == violations


def test_a_change_after_finished_is_a_violation(grid):
    finished = [grid.run("work", 0) and grid.state("work", 0)]
    grid.manager(0).set_state("work", 5)
    states = [*finished, grid.state("work", 0)]
    (violation,) = stream_violations(grid.store, job_of(grid), states)
    assert violation.startswith("row 0 was FINISHED at attempt 1 and changed again")
