"""One job inside a write transaction: the ``Transaction`` on which ``stores.steps`` runs."""

# ruff: noqa: S608 - only names of our own columns and tables are interpolated; every value is bound

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from operator import sub
from typing import Any, NamedTuple

from celery_statemanager import aggregate
from celery_statemanager.records import Cell, JobRecord, JobRef, OutboxState, Tally
from celery_statemanager.stores.kinds import COUNTED, Kind, kind_of
from celery_statemanager.stores.sqlite import outbox
from celery_statemanager.stores.sqlite.cell_statements import (
    INSERT_CELL,
    NEWEST,
    REWRITE_CELL,
    REWRITTEN,
    UPDATE_CELL,
)
from celery_statemanager.stores.sqlite.cells import COLUMNS, SELECTED, TALLY, cell_of, event_of, row_of
from celery_statemanager.stores.sqlite.jobs import CachedJob, JobCache, update
from celery_statemanager.stores.transactional import CellKey
from celery_statemanager.transitions import tally_of

TOUCH_EVERY = 60 * 1_000_000
"""Microseconds between two updates of ``job.touched``."""

_READ = f"""
SELECT j.revision, j.touched, ifnull(({NEWEST.format("timestamp", "j.id")}), 0), t.id, {SELECTED}
FROM job j
LEFT JOIN tag t ON t.job = j.id AND t.kind = ? AND t.name = ?
LEFT JOIN cell c ON c.job = j.id AND c.tag = t.id AND c.task_index = ?
WHERE j.id = ? AND j.incarnation = ?
"""
_READ_SLOT = f"""
SELECT t.id, {SELECTED} FROM tag t LEFT JOIN cell c ON c.job = t.job AND c.tag = t.id AND c.task_index = ?
WHERE t.job = ? AND t.kind = ? AND t.name = ?
"""
_TOTAL = f"SELECT {', '.join(f'ifnull(sum({name}), 0)' for name in TALLY)} FROM tag WHERE job = ? AND kind = ?"
_NEW_COLUMN = "SELECT ifnull(max(id), 0) + 1 FROM tag WHERE job = ?"
_COUNT = f"UPDATE tag SET {', '.join(f'{name} = {name} + ?' for name in TALLY)} WHERE job = ? AND id = ?"
_GAP = "SELECT low, high FROM gap WHERE job = ? AND tag = ? AND high >= ? ORDER BY high LIMIT 1"


class StaleCache(Exception):
    """The cached job or cell of a transaction is out of date. The transaction has changed nothing."""


class Slot(NamedTuple):
    """The location of a cell in the file, and the cell. ``column`` is None until the column's first cell is written."""

    kind: Kind
    column: int | None
    cell: Cell | None


class SQLiteTransaction:
    """The ``steps.Transaction`` of one job, valid until the write transaction of its connection ends.

    Args:
        cached: the job as last read. The first ``put`` raises ``StaleCache`` if it has changed since.
        touched: the value of ``job.touched``.
        now: the time, not earlier than any known change.
        slots: cells as last read or written; ``put`` checks them likewise.
    """

    def __init__(
        self, db: sqlite3.Connection, cached: CachedJob, touched: int, now: int, slots: dict[CellKey, Slot]
    ) -> None:
        self.now = now
        self.touched = touched
        self.changed = False
        self._db = db
        self.id = cached.id
        self.job = cached.job
        self._slots = slots
        self._outbox: OutboxState | None = None

    @classmethod
    def read(
        cls, db: sqlite3.Connection, jobs: JobCache, ref: JobRef, clock: int, key: CellKey | None = None
    ) -> SQLiteTransaction:
        """Create a transaction from the current job and, optionally, one of its cells. Raises: JobNotFound."""
        cached = jobs.get_cached(db, ref)
        row = _read(db, cached, key)
        if row is None or row[0] != cached.job.revision:
            cached = jobs.read(db, ref)
            row = _read(db, cached, key)
        _, touched, newest, *slot = row
        slots = {} if key is None else {key: _slot(kind_of(cached.job, *key), slot)}
        return cls(db, cached, touched, max(clock, newest, cached.latest_time), slots)

    def cell(self, tag: str, task_index: int) -> Cell | None:
        return self.slot((tag, task_index)).cell

    def slot(self, key: CellKey) -> Slot:
        """Return a cell with its location; read it unless this transaction has it."""
        slot = self._slots.get(key)
        if slot is None:
            tag, task_index = key
            kind = kind_of(self.job, tag, task_index)
            row = self._db.execute(_READ_SLOT, (task_index, self.id, kind, tag)).fetchone()
            slot = self._slots[key] = Slot(kind, None, None) if row is None else _slot(kind, row)
        return slot

    def put(self, tag: str, task_index: int, old: Cell | None, new: Cell) -> None:
        kind, column, _ = self.slot((tag, task_index))
        if column is None:
            column = self._new_column(kind, tag)
        key = (self.id, column, task_index)
        if old is None:
            self._db.execute(INSERT_CELL.text, INSERT_CELL.ordered((*key, *row_of(new))))
        else:
            self._update(key, old, new)
        self.changed = True
        self._slots[tag, task_index] = Slot(kind, column, new)
        if kind in COUNTED:
            self._count(column, *self._tallies(tag, task_index, old, new))
            if old is None:
                self._split_gap(*key)
        if self.now - self.touched >= TOUCH_EVERY:
            self.touched = self.now
            self._db.execute("UPDATE job SET touched = ? WHERE id = ?", (self.now, self.id))

    def rewrite(self, tag: str, task_index: int, old: Cell, new: Cell) -> None:
        kind, column, _ = self.slot((tag, task_index))
        assert column is not None
        values = dict(zip(COLUMNS, row_of(new)))
        self._db.execute(REWRITE_CELL, (*[values[name] for name in REWRITTEN], self.id, column, task_index))
        self._slots[tag, task_index] = Slot(kind, column, new)
        if kind in COUNTED:
            self._count(column, *self._tallies(tag, task_index, old, new))

    def total(self) -> Tally:
        return Tally(*self._db.execute(_TOTAL, (self.id, Kind.EXPECTED)).fetchone())

    def outbox(self) -> OutboxState:
        if self._outbox is None:
            self._outbox = outbox.read_state(self._db, self.id)
        return self._outbox

    def put_outbox(self, state: OutboxState) -> None:
        outbox.put_state(self._db, self.id, self.outbox(), state)
        self._outbox = state

    def put_value(self, task_index: int, value: str | None) -> None:
        outbox.put_value(self._db, self.id, task_index, value)

    def put_job(self, job: JobRecord) -> None:
        self.job = replace(job, revision=self.job.revision + 1)
        update(self._db, self.id, self.job)

    def _new_column(self, kind: Kind, tag: str) -> int:
        column: int = self._db.execute(_NEW_COLUMN, (self.id,)).fetchone()[0]
        self._db.execute("INSERT INTO tag (job, id, kind, name) VALUES (?, ?, ?, ?)", (self.id, column, kind, tag))
        if kind in COUNTED:
            ranges = aggregate.expected_rows(self.job, tag).ranges
            self._db.executemany(
                "INSERT INTO gap (job, tag, low, high) VALUES (?, ?, ?, ?)",
                ((self.id, column, low, high) for low, high in ranges),
            )
        return column

    def _update(self, key: tuple[int, int, int], old: Cell, new: Cell) -> None:
        same_owner = old.open == new.open and old.owner == new.owner
        statement = UPDATE_CELL[old.status == new.status, same_owner]
        expected = (old.version, event_of(old), old.schema_version, self.job.revision, self.job.incarnation)
        values = statement.ordered((*key, *row_of(new), *expected))
        if self._db.execute(statement.text, values).rowcount == 0:
            raise StaleCache

    def _tallies(self, tag: str, task_index: int, old: Cell | None, new: Cell) -> tuple[Tally, Tally]:
        is_last = aggregate.ends_row(self.job, tag, task_index)
        return tally_of(old, is_last=is_last), tally_of(new, is_last=is_last)

    def _count(self, column: int, old: Tally, new: Tally) -> None:
        if old != new:
            self._db.execute(_COUNT, (*map(sub, new, old), self.id, column))

    def _split_gap(self, job: int, tag: int, row: int) -> None:
        """Remove a row from its range. Ranges are keyed by their upper end, so the common case changes no key."""
        low, high = self._db.execute(_GAP, (job, tag, row)).fetchone()
        if row < high:
            self._db.execute("UPDATE gap SET low = ? WHERE job = ? AND tag = ? AND high = ?", (row + 1, job, tag, high))
        else:
            self._db.execute("DELETE FROM gap WHERE job = ? AND tag = ? AND high = ?", (job, tag, high))
        if low < row:
            self._db.execute("INSERT INTO gap (job, tag, low, high) VALUES (?, ?, ?, ?)", (job, tag, low, row - 1))


def _read(db: sqlite3.Connection, cached: CachedJob, key: CellKey | None) -> Sequence[Any]:
    kind = kind_of(cached.job, *key) if key else None
    row: Sequence[Any] = db.execute(_READ, (kind, *(key or (None, None)), cached.id, cached.job.incarnation)).fetchone()
    return row


def _slot(kind: Kind, row: Sequence[Any]) -> Slot:
    column, *cell = row
    return Slot(kind, column, None if cell[0] is None else cell_of(cell))
