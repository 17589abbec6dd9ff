"""One job inside a write transaction: what ``stores.steps`` works on."""

# ruff: noqa: S608 - what is put together are our own column names; every value is bound

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from celery_statemanager import aggregate
from celery_statemanager.records import Cell, JobRecord, JobRef, Tally
from celery_statemanager.stores.sqlite.cells import COLUMNS, SELECTED, cell_of, row_of
from celery_statemanager.stores.sqlite.jobs import Jobs, Known, update
from celery_statemanager.stores.sqlite.kinds import COUNTED, Kind, kind_of
from celery_statemanager.transitions import tally_of

TOUCH_EVERY = 60 * 1_000_000

_CELL_AT = 5 + len(Tally._fields)
_ALL = range(len(COLUMNS))
_TALLY = ", ".join(f"t.{name}" for name in Tally._fields)
_READ = f"""
SELECT j.revision, j.touched, ifnull(n.seq, 0), ifnull(n.timestamp, 0), t.id, {_TALLY}, {SELECTED}
FROM job j
LEFT JOIN cell n INDEXED BY cell_seq ON n.job = j.id
  AND n.seq = (SELECT max(seq) FROM cell INDEXED BY cell_seq WHERE job = j.id)
LEFT JOIN tag t ON t.job = j.id AND t.kind = ? AND t.name = ?
LEFT JOIN cell c ON c.job = j.id AND c.tag = t.id AND c.task_index = ?
WHERE j.id = ?
"""
_READ_TAG = f"SELECT t.id, {_TALLY} FROM tag t WHERE t.job = ? AND t.kind = ? AND t.name = ?"
_READ_CELL = f"SELECT {SELECTED} FROM cell c WHERE c.job = ? AND c.tag = ? AND c.task_index = ?"
_TOTAL = f"SELECT {', '.join(f'ifnull(sum({name}), 0)' for name in Tally._fields)} FROM tag WHERE job = ? AND kind = ?"
_INSERT_TAG = "INSERT INTO tag (job, id, kind, name) SELECT ?, ifnull(max(id), 0) + 1, ?, ? FROM tag WHERE job = ?"
_INSERT_CELL = (
    f"INSERT INTO cell (job, tag, task_index, seq, {', '.join(COLUMNS)}) VALUES (?, ?, ?, ?{', ?' * len(COLUMNS)})"
)
_GAP = "SELECT low, high FROM gap WHERE job = ? AND tag = ? AND high >= ? ORDER BY high LIMIT 1"


class SQLiteTransaction:
    """The ``steps.Transaction`` of one job; lives no longer than the write transaction of its connection.

    Raises: JobNotFound.
    """

    def __init__(
        self, db: sqlite3.Connection, jobs: Jobs, ref: JobRef, clock: int, cell: tuple[str, int] | None = None
    ) -> None:
        known, kind, read = _found(db, jobs.remembered(db, ref), cell)
        if read is None or read[0] != known.job.revision:
            known, kind, read = _found(db, jobs.read(db, ref), cell)
        _, self._touched, self._seq, newest, number = read[:5]
        self._db = db
        self._id = known.id
        self._job = known.job
        self._columns: dict[tuple[Kind, str], tuple[int, Tally]] = {}
        self._rows: dict[tuple[str, int], Sequence[Any] | None] = {}
        self.now = max(clock, newest, known.said_at)
        if cell is not None and kind is not None:
            self._rows[cell] = None if read[_CELL_AT] is None else read[_CELL_AT:]
            if number is not None:
                self._columns[kind, cell[0]] = number, Tally._make(read[5:_CELL_AT])

    @property
    def job(self) -> JobRecord:
        return self._job

    def cell(self, tag: str, task_index: int) -> Cell | None:
        row = self._row(tag, task_index)
        return None if row is None else cell_of(row)

    def put(self, tag: str, task_index: int, old: Cell | None, new: Cell) -> None:
        before, after = self._row(tag, task_index), row_of(new)
        kind = kind_of(self._job, tag, task_index)
        number, tally = self._column(kind, tag) or self._new_column(kind, tag)
        place = (self._id, number, task_index)
        self._seq += 1
        if before is None:
            self._db.execute(_INSERT_CELL, (*place, self._seq, *after))
        else:
            self._update(place, before, after)
        self._rows[tag, task_index] = after
        if kind in COUNTED:
            self._count(kind, tag, number, tally, tally_of(old), tally_of(new))
            if before is None:
                self._split_gap(*place)
        if self.now - self._touched >= TOUCH_EVERY:
            self._touched = self.now
            self._db.execute("UPDATE job SET touched = ? WHERE id = ?", (self.now, self._id))

    def total(self) -> Tally:
        return Tally(*self._db.execute(_TOTAL, (self._id, Kind.EXPECTED)).fetchone())

    def put_job(self, job: JobRecord) -> None:
        self._job = replace(job, revision=self._job.revision + 1)
        update(self._db, self._id, self._job)

    def _row(self, tag: str, task_index: int) -> Sequence[Any] | None:
        if (tag, task_index) not in self._rows:
            column = self._column(kind_of(self._job, tag, task_index), tag)
            place = (self._id, column[0], task_index) if column else None
            self._rows[tag, task_index] = self._db.execute(_READ_CELL, place).fetchone() if place else None
        return self._rows[tag, task_index]

    def _column(self, kind: Kind, tag: str) -> tuple[int, Tally] | None:
        if (kind, tag) not in self._columns:
            row = self._db.execute(_READ_TAG, (self._id, kind, tag)).fetchone()
            if row is None:
                return None
            self._columns[kind, tag] = row[0], Tally(*row[1:])
        return self._columns[kind, tag]

    def _new_column(self, kind: Kind, tag: str) -> tuple[int, Tally]:
        self._db.execute(_INSERT_TAG, (self._id, kind, tag, self._id))
        column = self._column(kind, tag)
        assert column is not None
        if kind in COUNTED:
            ranges = aggregate.expected_rows(self._job, tag).ranges
            self._db.executemany(
                "INSERT INTO gap (job, tag, low, high) VALUES (?, ?, ?, ?)",
                ((self._id, column[0], low, high) for low, high in ranges),
            )
        return column

    def _update(self, place: tuple[int, int, int], old: Sequence[Any], new: Sequence[Any]) -> None:
        """Set only what differs: an index is rewritten as soon as one of its columns is named."""
        changed = tuple([at for at in _ALL if old[at] != new[at]])
        self._db.execute(_update_cell(changed), (self._seq, *[new[at] for at in changed], *place))

    def _count(self, kind: Kind, tag: str, number: int, tally: Tally, old: Tally, new: Tally) -> None:
        if old != new:
            counted = tally.moved(old, new)
            changed = tuple([at for at, count in enumerate(counted) if count != tally[at]])
            self._db.execute(_update_tag(changed), (*[counted[at] for at in changed], self._id, number))
            self._columns[kind, tag] = number, counted

    def _split_gap(self, job: int, tag: int, row: int) -> None:
        """Take a row out of the range it lies in, which goes by its upper end: the common case changes no key."""
        low, high = self._db.execute(_GAP, (job, tag, row)).fetchone()
        if row < high:
            self._db.execute("UPDATE gap SET low = ? WHERE job = ? AND tag = ? AND high = ?", (row + 1, job, tag, high))
        else:
            self._db.execute("DELETE FROM gap WHERE job = ? AND tag = ? AND high = ?", (job, tag, high))
        if low < row:
            self._db.execute("INSERT INTO gap (job, tag, low, high) VALUES (?, ?, ?, ?)", (job, tag, low, row - 1))


def _found(db: sqlite3.Connection, known: Known, cell: tuple[str, int] | None) -> tuple[Known, Kind | None, Any]:
    kind = kind_of(known.job, *cell) if cell else None
    return known, kind, db.execute(_READ, (kind, *(cell or (None, None)), known.id)).fetchone()


@cache
def _update_cell(changed: tuple[int, ...]) -> str:
    terms = "".join(f", {COLUMNS[at]} = ?" for at in changed)
    return f"UPDATE cell SET seq = ?{terms} WHERE job = ? AND tag = ? AND task_index = ?"


@cache
def _update_tag(changed: tuple[int, ...]) -> str:
    terms = ", ".join(f"{Tally._fields[at]} = ?" for at in changed)
    return f"UPDATE tag SET {terms} WHERE job = ? AND id = ?"
