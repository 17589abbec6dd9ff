"""Choosing the rows of a rerun, and two reruns at once (rule R20)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from celery_statemanager.errors import StoreContended
from celery_statemanager.generations import begin_generation, choose_rows, reset_rows
from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import Status
from celery_statemanager.records import JobRecord, Write
from celery_statemanager.stores import open_store
from celery_statemanager.testing import Grid
from celery_statemanager.testing.kit import CANCELLED, FAILED, FINISHED

rows = IndexSet.parse


@pytest.fixture
def grid() -> Grid:
    """A job of five rows: one has finished, one failed, one was lost, one runs, one waits."""
    grid = Grid.submitted(open_store("memory://"), 5)
    for row, status in enumerate((FINISHED, FAILED, int(Status.LOST))):
        grid.run("a", row, status)
    grid.begin("a", 3)
    return grid


def complete(grid: Grid):
    """Return a function that completes a rerun, and the list of its calls."""
    calls: list[JobRecord] = []

    def call(job: JobRecord) -> None:
        calls.append(job)
        reset_rows(grid.store, job, lambda _, tag: tag, lambda: None)

    return call, calls


@pytest.mark.parametrize(
    ("requested", "chosen", "skipped"),
    [(None, "1-2", ""), ("0-4", "1-2", "0,3-4"), ("2", "2", ""), ("0", "", "0"), ("", "", "")],
)
def test_only_rows_that_have_ended_without_success_are_chosen(grid, requested, chosen, skipped):
    wanted = None if requested is None else rows(requested)
    report = choose_rows(grid.store, grid.ref, wanted)
    assert (report.rows, report.skipped) == (rows(chosen), rows(skipped))


def test_rows_that_never_began_are_chosen_in_a_cancelled_job(grid):
    grid.cancel()
    assert choose_rows(grid.store, grid.ref, None).rows == rows("1-2,4")
    assert choose_rows(grid.store, grid.ref, None).skipped == rows("")


def test_no_generation_begins_without_rows(grid):
    call, calls = complete(grid)
    assert not begin_generation(grid.store, grid.ref, rows("0,3"), call).rows
    assert (grid.job.generation.number, calls) == (1, [])


def test_an_incomplete_rerun_is_completed_before_another_one_begins(grid):
    call, calls = complete(grid)
    begin_generation(grid.store, grid.ref, rows("1"), call)
    assert not calls
    report = begin_generation(grid.store, grid.ref, rows("1-2"), call)
    assert [job.generation.rows_to_reset for job in calls] == [rows("1")]
    assert (report.rows, report.skipped) == (rows("2"), rows("1"))
    assert (grid.job.generation.number, grid.job.generation.rows_to_reset) == (3, rows("2"))


def test_a_job_that_changes_meanwhile_is_read_again(grid):
    """The row that is to be rerun begins again between the choice and the record of the generation."""
    store, update_job, changed = grid.store, grid.store.update_job, []

    def change_first(job: JobRecord):
        if not changed:
            changed.append(True)
            grid.begin("a", 1, takes_over=True)
            update_job(replace(grid.job, tombstoned_at=1))
        return update_job(job)

    store.update_job = change_first
    assert begin_generation(store, grid.ref, rows("1-2"), complete(grid)[0]).rows == rows("2")


def test_a_job_that_others_keep_changing_is_reported(grid):
    grid.store.update_job = lambda _: None
    with pytest.raises(StoreContended, match="changed by other processes at each try; try again"):
        begin_generation(grid.store, grid.ref, None, complete(grid)[0], timeout=0.1)


def test_rows_of_a_cancelled_job_that_are_not_chosen_are_marked(grid):
    grid.end("a", 3)
    grid.cancel("user asked")
    begin_generation(grid.store, grid.ref, rows("1"), complete(grid)[0])
    reset_rows(grid.store, grid.job, lambda _, tag: tag, lambda: None)
    states = {state.task_index: state.status for state in grid.states()}
    assert states == {0: FINISHED, 1: 0, 2: int(Status.LOST), 3: FINISHED, 4: CANCELLED}


def test_a_row_that_ends_well_before_its_reset_stays(grid):
    begin_generation(grid.store, grid.ref, rows("1"), complete(grid)[0])
    grid.store.write(grid.ref, Write.state("a", 1, FINISHED))
    reset_rows(grid.store, grid.job, lambda _, tag: tag, lambda: None)
    assert grid.cell("a", 1).succeeded


def test_a_cancelled_job_must_settle_before_a_rerun(grid):
    grid.cancel()
    with pytest.raises(StoreContended, match="is cancelled and has not settled: wait until its tasks have stopped"):
        begin_generation(grid.store, grid.ref, rows("1"), complete(grid)[0], timeout=0.1)
    grid.end("a", 3, CANCELLED)
    assert begin_generation(grid.store, grid.ref, rows("1"), complete(grid)[0]).rows == rows("1")


def test_rows_are_published_while_many_are_reset():
    grid, published = Grid.submitted(open_store("memory://"), 1_200), []
    for row in range(1_200):
        grid.write("a", row, FAILED)
    begin_generation(grid.store, grid.ref, None, complete(grid)[0])
    reset_rows(grid.store, grid.job, lambda _, tag: tag, lambda: published.append(grid.manager().summary().failed))
    assert published == [700, 200]
