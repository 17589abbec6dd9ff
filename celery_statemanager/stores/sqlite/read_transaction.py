"""Reads of one job inside a read transaction: cells, the lowest cell, the columns."""

# ruff: noqa: S608 - only names of our own columns and tables are interpolated; every value is bound

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from celery_statemanager import aggregate
from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import FINISHED, Scope, State
from celery_statemanager.records import Cell, Column, Tally
from celery_statemanager.stores.kinds import Kind, column_kind, kind_of
from celery_statemanager.stores.sqlite.cells import SELECTED, TALLY, cell_of
from celery_statemanager.stores.sqlite.jobs import CachedJob

_TAG = f"SELECT id, {', '.join(TALLY)} FROM tag WHERE job = ? AND kind = ? AND name = ?"
_TAGS = "SELECT name FROM tag WHERE job = ? AND kind = ?"
_CELL = f"""
SELECT {SELECTED} FROM tag t JOIN cell c ON c.job = t.job AND c.tag = t.id
WHERE t.job = ? AND t.kind = ? AND t.name = ? AND c.task_index = ?
"""
_LOWEST = f"""
SELECT c.task_index, {SELECTED} FROM cell c INDEXED BY cell_status
WHERE c.job = ? AND c.tag = ? AND c.status <> {FINISHED} ORDER BY c.status, c.task_index LIMIT 1
"""
_FIRST = f"SELECT c.task_index, {SELECTED} FROM cell c WHERE c.job = ? AND c.tag = ? ORDER BY c.task_index LIMIT 1"
_WAITING = """
SELECT task_index FROM cell INDEXED BY cell_waiting
WHERE job = ? AND tag = ? AND status = 0 AND open = 0 ORDER BY task_index LIMIT 1
"""
_ROWS = f"""
SELECT task_index FROM cell INDEXED BY cell_status
WHERE job = ? AND tag = ? AND status BETWEEN ? AND ? AND status <> {FINISHED}
"""
_BLOCKED = f"""
SELECT task_index FROM cell INDEXED BY cell_status
WHERE job = ? AND tag = ? AND status < 0 AND status <> {FINISHED} AND open = 0 AND blocked_by IS NOT NULL
"""
_STALLED = """
SELECT task_index FROM cell INDEXED BY cell_owned
WHERE job = ? AND tag = ? AND stalled_since <> 0
  AND owner IS NOT NULL AND (open = 1 OR (began_at <> 0 AND status >= 0 AND status < 2147483647))
"""
_LOWEST_GAP = "SELECT low FROM gap WHERE job = ? AND tag = ? ORDER BY high LIMIT 1"
_GAPS = "SELECT low, high FROM gap WHERE job = ? AND tag = ? ORDER BY high"


class SQLiteReadTransaction:
    """One job inside a read transaction, valid until the transaction ends."""

    def __init__(self, db: sqlite3.Connection, cached: CachedJob) -> None:
        self._db = db
        self._id = cached.id
        self.job = cached.job

    def cell(self, tag: str, task_index: int) -> Cell | None:
        """Read a cell of any kind."""
        kind = kind_of(self.job, tag, task_index)
        row = self._db.execute(_CELL, (self._id, kind, tag, task_index)).fetchone()
        return cell_of(row) if row else None

    def lowest(self, scope: Scope) -> State:
        """Return the lowest cell of a scope, missing cells included."""
        tags = self._expected_tags() if scope.tag is None else [scope.tag]
        row = scope.task_index
        if row is None:
            states: Iterable[State] = (self._lowest(tag) for tag in tags)
        elif scope.tag is None:
            states = (self._state(tag, row) for tag in tags if aggregate.expects(self.job, tag, row))
        else:
            states = [self._state(scope.tag, row)]
        return aggregate.lowest(states) or aggregate.missing_state(self.job, scope.tag or "", row or 0)

    def column_summaries(self, tag: str | None, *, indexes: bool) -> list[Column]:
        """Return the expected columns, or one column."""
        tags = self._expected_tags() if tag is None else [tag]
        return [self._column(each, indexes=indexes) for each in tags]

    def _expected_tags(self) -> list[str]:
        if self.job.plan:
            return aggregate.expected_tags(self.job, ())
        return aggregate.expected_tags(
            self.job, (name for (name,) in self._db.execute(_TAGS, (self._id, Kind.EXPECTED)))
        )

    def _tally(self, tag: str) -> tuple[int | None, Tally]:
        row = self._db.execute(_TAG, (self._id, column_kind(self.job, tag), tag)).fetchone()
        return (row[0], Tally(*row[1:])) if row else (None, Tally())

    def _column(self, tag: str, *, indexes: bool) -> Column:
        number, tally = self._tally(tag)
        rows = aggregate.expected_rows(self.job, tag)
        column = Column(tag, len(rows), tally, self._lowest(tag))
        if indexes and number is None:
            column.failed = column.running = column.not_run = column.stalled = IndexSet()
            column.missing = rows
        elif indexes and number is not None:
            gaps = IndexSet.from_ranges(self._db.execute(_GAPS, (self._id, number)))
            if tally.not_run:  # the query reads every negative cell of the column: no index covers it
                column.not_run = IndexSet(row for (row,) in self._db.execute(_BLOCKED, (self._id, number)))
            else:
                column.not_run = IndexSet()
            stalled = self._db.execute(_STALLED, (self._id, number)) if tally.stalled else ()
            column.stalled = IndexSet(row for (row,) in stalled)
            column.failed = self._rows(number, -(2**31), -1).without(column.not_run)
            column.running = self._rows(number, 1, FINISHED - 1)
            column.missing = gaps.union(self._rows(number, 0, 0))
        return column

    def _rows(self, number: int, low: int, high: int) -> IndexSet:
        return IndexSet(row for (row,) in self._db.execute(_ROWS, (self._id, number, low, high)))

    def _lowest(self, tag: str) -> State:
        number, _ = self._tally(tag)
        if number is None:
            return aggregate.missing_state(self.job, tag, aggregate.expected_rows(self.job, tag).first)
        column = (self._id, number)
        row, *cell = self._db.execute(_LOWEST, column).fetchone() or self._db.execute(_FIRST, column).fetchone()
        states = [aggregate.visible_state(self.job, tag, row, cell_of(cell))]
        gap = self._db.execute(_LOWEST_GAP, column).fetchone()
        if gap:
            states.append(aggregate.missing_state(self.job, tag, gap[0]))
        waiting = self._db.execute(_WAITING, column).fetchone() if self.job.cancelled else None
        if waiting:
            states.append(self._state(tag, waiting[0]))
        return aggregate.lowest(states) or states[0]

    def _state(self, tag: str, task_index: int) -> State:
        return aggregate.visible_state(self.job, tag, task_index, self.cell(tag, task_index))
