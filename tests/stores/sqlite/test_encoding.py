"""How cells and their counts are stored in the file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlite_kit import raw, recount

from celery_statemanager.records import CALLBACK_ROW
from celery_statemanager.stores.kinds import Kind
from celery_statemanager.stores.sqlite import SQLiteStore, cell_statements
from celery_statemanager.stores.sqlite.jobs import MAX_CACHED_JOBS
from celery_statemanager.testing.kit import Grid

STATEMENTS = [cell_statements.INSERT_CELL, *cell_statements.UPDATE_CELL.values()]


class TestEncoding:
    @pytest.mark.parametrize("statement", STATEMENTS)
    def test_statements_use_unnumbered_placeholders(self, statement: cell_statements.Statement) -> None:
        """Early releases of Python 3.12 warn about numbered placeholders at every write."""
        assert re.search(r"\?\d", statement.text) is None
        assert statement.text.count("?") == len(statement.ordered(tuple(cell_statements.BOUND)))

    @pytest.mark.parametrize(
        "event_id", ["0" * 32, "f" * 32, "F" * 32, "g" * 32, "ab" * 15 + "a ", "x", "ä" * 32, "0" * 31, "0" * 64]
    )
    def test_every_event_id_is_read_back_unchanged(self, store: SQLiteStore, event_id: str) -> None:
        grid = Grid.create(store)
        assert grid.write("a", 0, 5, event_id=event_id).cell.event_id == event_id
        assert grid.cell("a", 0).event_id == event_id
        assert grid.write("a", 0, 6, event_id=event_id).changed is False

    @pytest.mark.parametrize("message", ["", "a\x00b", "ß\n☃", None])
    def test_every_message_is_read_back_unchanged(self, store: SQLiteStore, message: str | None) -> None:
        grid = Grid.create(store)
        grid.write("a", 0, 5, message=message)
        assert grid.state("a", 0).message == message

    def test_more_jobs_than_the_cache_holds_are_written_correctly(self, store: SQLiteStore) -> None:
        grids = [Grid.create(store, job_id=f"job {number}", tags=("a",)) for number in range(MAX_CACHED_JOBS + 5)]
        for version in (1, 2):
            for grid in grids:
                assert grid.write("a", 0, 5).cell.version == version
        assert len(store._jobs._cached) == MAX_CACHED_JOBS

    def test_unexpected_cells_are_stored_apart_from_their_column(self, path: Path, store: SQLiteStore) -> None:
        grid = Grid.create(store, 4, {"a": [0, 1], "b": [2, 3]})
        grid.write("a", 3, -9)
        grid.write("a", 0, 5)
        grid.write("z", 3, -8)
        grid.run("success", CALLBACK_ROW)
        grid.write("success", 0, 7)
        assert (grid.lowest("a").status, grid.lowest("a").task_index) == (0, 1)
        assert grid.state("a", 3).status == -9
        assert {(state.tag, state.task_index) for state in grid.states()} == {
            ("a", 3),
            ("a", 0),
            ("z", 3),
            ("success", 0),
        }
        assert [state.task_index for state in grid.states("a")] == [3, 0]
        assert [state.tag for state in grid.states(row=3)] == ["a", "z"]
        with raw(path) as db:
            kinds = dict(db.execute("SELECT kind, count(*) FROM tag GROUP BY kind"))
        assert kinds == {Kind.CALLBACK: 1, Kind.EXPECTED: 1, Kind.EXTRA: 2, Kind.STRAY: 1}
        recount(path)

    def test_gaps_are_split_at_any_row(self, path: Path, store: SQLiteStore) -> None:
        grid = Grid.create(store, 12, {"a": [*range(5), *range(7, 10)], "b": range(12)})
        for row in (2, 0, 4, 1, 3, 9, 8, 7):
            grid.write("a", row, 5)
            recount(path)
        assert grid.lowest("a").status == 5
