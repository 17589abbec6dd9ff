"""A cached cell is used only while no other process has written."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlite_kit import opened, recount

from celery_statemanager.errors import AttemptSuperseded, JobCancelled, JobNotFound, StoreError
from celery_statemanager.stores.sqlite import SQLiteStore
from celery_statemanager.stores.sqlite.write_cache import MAX_CACHED_CELLS
from celery_statemanager.testing.kit import FAILED, FINISHED, FakeClock, Grid

PLAN = ("a", "b")


@pytest.fixture
def ours(store: SQLiteStore) -> Grid:
    """Return a job with a cell that this store wrote last."""
    grid = Grid.create(store, 4, PLAN)
    grid.begin("a", 0)
    grid.write("a", 0, 5, message="first")
    return grid


@pytest.fixture
def theirs(path: Path, ours: Grid) -> Iterator[Grid]:
    """Yield the same job in a store with its own cache."""
    with opened(path) as other:
        yield ours.seen_by(other)


class TestWriteCache:
    def test_a_write_continues_from_the_writes_of_others(self, path: Path, ours: Grid, theirs: Grid) -> None:
        for version in range(3, 13, 2):
            assert theirs.write("a", 0, 6, payload=f'{{"n":{version}}}').cell.version == version
            mine = ours.write("a", 0, 7, keep_payload=True).cell
            assert (mine.version, mine.payload) == (version + 1, f'{{"n":{version}}}')
        recount(path)

    def test_a_write_is_fenced_by_an_attempt_that_others_began(self, path: Path, ours: Grid, theirs: Grid) -> None:
        second = theirs.begin("a", 0, takes_over=True).cell
        assert ours.write("a", 0, 8, attempt=second.attempt).cell.attempt == second.attempt
        third = theirs.begin("a", 0, takes_over=True).cell
        with pytest.raises(AttemptSuperseded):
            ours.write("a", 0, 9, attempt=second.attempt)
        assert ours.write("a", 0, 9, attempt=third.attempt).changed
        recount(path)

    def test_an_event_id_counts_as_repeated_only_until_others_write(self, ours: Grid, theirs: Grid) -> None:
        first = ours.write("a", 0, 5, event_id="mine").cell
        assert ours.write("a", 0, 5, event_id="mine").changed is False
        theirs.write("a", 0, 6)
        again = ours.write("a", 0, 5, event_id="mine")
        assert (again.changed, again.cell.version) == (True, first.version + 2)

    def test_a_cell_that_others_finished_is_not_begun(self, ours: Grid, theirs: Grid) -> None:
        theirs.end("a", 0, FINISHED)
        assert ours.begin("a", 0).verdict.value == "finished"

    def test_a_job_that_others_cancelled_accepts_no_progress(self, ours: Grid, theirs: Grid) -> None:
        theirs.cancel()
        with pytest.raises(JobCancelled):
            ours.write("a", 0, 6)

    def test_a_job_that_others_deleted_is_not_found_even_if_recreated(self, ours: Grid, theirs: Grid) -> None:
        theirs.delete()
        with pytest.raises(JobNotFound):
            ours.write("a", 0, 6)
        Grid.create(theirs.store, 4, PLAN)
        with pytest.raises(JobNotFound):
            ours.write("a", 0, 6)

    def test_a_job_is_not_found_after_its_file_is_replaced(self, path: Path, ours: Grid) -> None:
        ours.write("a", 0, 5, event_id="mine")
        ours.store.close()
        for file in path.parent.iterdir():
            file.unlink()
        with opened(path) as store:
            another = Grid.create(store, 4, PLAN)
            another.begin("a", 0)
            another.write("a", 0, 5)
            another.write("a", 0, 5, event_id="mine")
            for use in (
                lambda: ours.write("a", 0, 6),
                lambda: ours.write("b", 1, 6),
                lambda: ours.cell("a", 0),
                ours.lowest,
                ours.states,
            ):
                with pytest.raises(JobNotFound):
                    use()
            assert [(state.tag, state.status) for state in another.states()] == [("a", 5)]

    def test_later_stages_are_not_read_from_the_cache(self, path: Path, ours: Grid, theirs: Grid) -> None:
        ours.end("a", 0, FAILED)
        ours.begin("a", 0)
        assert theirs.run("b", 0).cell.version == 4
        ours.end("a", 0, FAILED)
        assert ours.cell("b", 0).status == FINISHED
        recount(path)

    def test_a_write_is_not_earlier_than_one_by_a_clock_ahead_of_ours(self, path: Path) -> None:
        clock, ahead = FakeClock(), FakeClock()
        ahead.advance(3600)
        with opened(path, clock=clock) as store, opened(path, clock=ahead) as other:
            ours = Grid.create(store, 4, PLAN)
            ours.write("a", 0, 5)
            newest = ours.seen_by(other).write("b", 3, 5).cell.timestamp
            assert ours.write("a", 0, 6).cell.timestamp == newest
        recount(path)

    def test_a_write_does_not_continue_from_a_rolled_back_write(self, path: Path, ours: Grid) -> None:
        store = ours.store
        assert isinstance(store, SQLiteStore)
        forbid_commits(store)
        for _ in range(2):
            with pytest.raises(StoreError, match="not authorized"):
                ours.write("a", 0, 6)
            with pytest.raises(StoreError, match="not authorized"):
                ours.write("b", 1, 6)
        store.close()
        assert [ours.write(tag, row, 7).cell.version for tag, row in (("a", 0), ("b", 1))] == [3, 1]
        recount(path)

    def test_a_rolled_back_column_is_not_confused_with_the_one_that_replaced_it(
        self, path: Path, ours: Grid, theirs: Grid
    ) -> None:
        store = ours.store
        assert isinstance(store, SQLiteStore)
        forbid_commits(store)
        with pytest.raises(StoreError, match="not authorized"):
            ours.write("mine", 0, 5, event_id="page 1")
        store.close()
        theirs.write("theirs", 0, 5, event_id="page 1")
        assert ours.write("mine", 0, 6).cell.version == 1
        assert theirs.cell("theirs", 0).status == 5
        recount(path)

    def test_more_cells_than_the_cache_holds_are_written_correctly(self, path: Path, store: SQLiteStore) -> None:
        grid = Grid.create(store, MAX_CACHED_CELLS + 5)
        for version in (1, 2, 3):
            for row in range(MAX_CACHED_CELLS + 5):
                assert grid.write("a", row, 5).cell.version == version
        assert len(store._write_cache._cells) == MAX_CACHED_CELLS
        recount(path)


def forbid_commits(store: SQLiteStore) -> None:
    """Make every commit fail until the store's connections are closed."""
    with pytest.raises(StoreError, match="not authorized"):
        store._pool.write(lambda db: db.set_authorizer(_deny_commit))


def _deny_commit(action: int, operation: str | None, *_: object) -> int:
    denied = action == sqlite3.SQLITE_TRANSACTION and operation == "COMMIT"
    return sqlite3.SQLITE_DENY if denied else sqlite3.SQLITE_OK
