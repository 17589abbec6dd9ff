"""The written cells of a job as readers see them, in the order of their last change, page by page."""

# ruff: noqa: S608 - what is put together are our own column names; every value is bound

from __future__ import annotations

import json
import sqlite3
from bisect import bisect_left
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

from celery_statemanager import aggregate
from celery_statemanager.models import Scope, State, state_from_fields
from celery_statemanager.records import Cell, JobRecord, JobRef, to_datetime
from celery_statemanager.stores.sqlite.cells import unpacked
from celery_statemanager.stores.sqlite.jobs import Jobs
from celery_statemanager.stores.sqlite.kinds import Kind
from celery_statemanager.stores.sqlite.pool import Pool

PAGE = 500

Row = tuple[Any, ...]
"""The columns of ``_ROW``."""

_ROW = (
    "c.seq, c.timestamp, t.name, c.task_index, c.status, c.message, c.payload, c.version, c.event_id, c.attempt, "
    "c.schema_version, c.open"
)
_MOMENT = itemgetter(1)
_ORDER = itemgetter(1, 2, 3)
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

    def read(db: sqlite3.Connection) -> tuple[JobRecord, list[Row]]:
        known = jobs.current(db, ref)
        if scope.task_index is None:
            return known.job, changed(db, known.id, scope, 0, PAGE)
        return known.job, db.execute(_IN_ROW, (known.id, scope.tag, scope.task_index)).fetchall()

    job, rows = pool.read(read)
    if scope.task_index is not None:
        return (state_of(job, row) for row in sorted(rows, key=_ORDER))
    pages = _once(job.num_tasks, _pages(pool, jobs, ref, scope, rows))
    return (state_of(job, row) for rows in _by_moments(pages) for row in rows)


def state_of(job: JobRecord, row: Row) -> State:
    """Give a row as readers see it, without a ``Cell`` on the way: lists are long."""
    _, timestamp, tag, task_index, status, message, payload, version, event_id, attempt, schema_version, is_open = row
    state = state_from_fields(
        job.job_id,
        task_index,
        tag,
        status,
        message,
        json.loads(payload) if payload else None,
        to_datetime(timestamp),
        version,
        unpacked(event_id) or None,
        attempt,
        schema_version,
    )
    return state if job.cancelled is None else aggregate.as_read(job, Cell(status, open=is_open == 1), state)


def _pages(pool: Pool, jobs: Jobs, ref: JobRef, scope: Scope, rows: list[Row]) -> Iterator[list[Row]]:
    """Give the first page and what follows; a page that is not full was the end, as of its own moment."""

    def page(db: sqlite3.Connection) -> list[Row]:
        return changed(db, jobs.current(db, ref).id, scope, rows[-1][0], PAGE)

    yield rows
    while len(rows) == PAGE:
        rows = pool.read(page)
        yield rows


def _once(num_tasks: int, pages: Iterator[list[Row]]) -> Iterator[list[Row]]:
    """Let each cell pass once: one that was given and then written again moves to the end. Costs a bit a cell."""
    passed: dict[str, bytearray] = {}
    for page in pages:
        fresh = []
        for row in page:
            bits = passed.get(row[2])
            if bits is None:
                bits = passed[row[2]] = bytearray(num_tasks // 8 + 1)
            at, bit = row[3] >> 3, 1 << (row[3] & 7)
            if not bits[at] & bit:
                bits[at] |= bit
                fresh.append(row)
        yield fresh


def _by_moments(pages: Iterator[list[Row]]) -> Iterator[list[Row]]:
    """Changes come in the order of their timestamps; what was changed in the same moment is put in order here."""
    rest: list[Row] = []
    for page in pages:
        rows = sorted(rest + page, key=_ORDER)
        cut = bisect_left(rows, rows[-1][1], key=_MOMENT) if rows else 0
        yield rows[:cut]
        rest = rows[cut:]
    yield rest
