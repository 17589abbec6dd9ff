"""The written cells of a job in the order of their last change, page by page."""

# ruff: noqa: S608 - what is put together are our own column names; every value is bound

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from celery_statemanager.models import Scope, State
from celery_statemanager.records import JobRecord, JobRef
from celery_statemanager.stores.sqlite.cells import SELECTED, cell_of
from celery_statemanager.stores.sqlite.jobs import Jobs
from celery_statemanager.stores.sqlite.kinds import Kind
from celery_statemanager.stores.sqlite.pool import Pool
from celery_statemanager.stores.sqlite.snapshot import seen

PAGE = 500

Row = tuple[Any, ...]
"""``(seq, tag, task_index, timestamp, *cell)``."""

_ROW = f"c.seq, t.name, c.task_index, c.timestamp, {SELECTED}"
_CHANGED = f"""
SELECT {_ROW} FROM cell c INDEXED BY cell_seq CROSS JOIN tag t ON t.job = c.job AND t.id = c.tag
WHERE c.job = ? AND c.seq > ? AND t.kind <> {Kind.CALLBACK:d}
  AND t.name = ifnull(?, t.name) AND c.task_index = ifnull(?, c.task_index)
ORDER BY c.seq LIMIT ?
"""
_IN_ROW = f"""
SELECT {_ROW} FROM tag t CROSS JOIN cell c ON c.job = t.job AND c.tag = t.id
WHERE t.job = ? AND t.kind <> {Kind.CALLBACK:d} AND t.name = ifnull(?, t.name) AND c.task_index = ?
ORDER BY c.seq
"""


def newest_change(db: sqlite3.Connection, number: int) -> int:
    """Give the number of a job's last change; 0 when nothing was written."""
    newest: int = db.execute("SELECT ifnull(max(seq), 0) FROM cell WHERE job = ?", (number,)).fetchone()[0]
    return newest


def changed(db: sqlite3.Connection, number: int, scope: Scope, after: int, limit: int) -> list[Row]:
    """Give the first cells of a scope whose last change came after that one, in the order of their changes."""
    if scope.task_index is not None and scope.task_index < 0:
        return []
    return db.execute(_CHANGED, (number, after, scope.tag, scope.task_index, limit)).fetchall()


def list_states(pool: Pool, jobs: Jobs, ref: JobRef, scope: Scope) -> Iterator[State]:
    """Give the written cells of a scope by (timestamp, tag, task_index).

    No transaction is open between two of them. A cell written again meanwhile comes once, as it was or as it
    is by then; none that was there at the call is left out. Raises: JobNotFound, when deleted meanwhile too.
    """
    with pool.reading() as db:
        known = jobs.current(db, ref)
        if scope.task_index is not None:
            rows = db.execute(_IN_ROW, (known.id, scope.tag, scope.task_index)).fetchall()
            return _states(known.job, rows)
        rows = changed(db, known.id, scope, 0, PAGE)
    return _states(known.job, _once(known.job.num_tasks, _pages(pool, jobs, ref, scope, rows)))


def _pages(pool: Pool, jobs: Jobs, ref: JobRef, scope: Scope, rows: list[Row]) -> Iterator[Row]:
    """Give the first page and what follows; a page that is not full was the end, as of its own moment."""
    yield from rows
    while len(rows) == PAGE:
        with pool.reading() as db:
            rows = changed(db, jobs.current(db, ref).id, scope, rows[-1][0], PAGE)
        yield from rows


def _once(num_tasks: int, rows: Iterable[Row]) -> Iterator[Row]:
    """Let each cell pass once: one that was given and then written again moves to the end. Costs a bit a cell."""
    passed: dict[str, bytearray] = {}
    for row in rows:
        _, tag, task_index, *_ = row
        bits = passed.get(tag)
        if bits is None:
            bits = passed[tag] = bytearray(num_tasks // 8 + 1)
        at, bit = task_index >> 3, 1 << (task_index & 7)
        if not bits[at] & bit:
            bits[at] |= bit
            yield row


def _states(job: JobRecord, rows: Iterable[Row]) -> Iterator[State]:
    """Changes come in the order of their timestamps; what was changed in the same moment is put in order here."""
    for _, moment in groupby(rows, key=lambda row: row[3]):
        for _, tag, task_index, _, *cell in sorted(moment, key=lambda row: row[1:3]):
            yield seen(job, tag, task_index, cell_of(cell))
