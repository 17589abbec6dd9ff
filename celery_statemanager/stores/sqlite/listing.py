"""The written cells of a job as readers see them, in the order of their last change, page by page."""

# ruff: noqa: S608 - only names of our own columns and tables are interpolated; every value is bound

from __future__ import annotations

import json
import sqlite3
from bisect import bisect_left
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

from celery_statemanager import aggregate
from celery_statemanager.models import Scope, State, state_from_fields
from celery_statemanager.records import (
    Cell,
    JobKey,
    JobRecord,
    JobRef,
    OpenAttempt,
    StoredCell,
    WorkerRecord,
    to_datetime,
)
from celery_statemanager.stores.sqlite.cells import SELECTED, Kind, cell_of, unpacked
from celery_statemanager.stores.sqlite.jobs import Jobs
from celery_statemanager.stores.sqlite.pool import Pool
from celery_statemanager.stores.steps import mark_of

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
    return state if job.cancelled is None else aggregate.mask_cancelled(job, Cell(status, open=is_open == 1), state)


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


ATTEMPTS_PAGE = 200

_OWNED = f"""
SELECT c.job, c.tag, c.task_index, j.job_id, j.run_token, j.incarnation, t.name, {SELECTED}
FROM cell c INDEXED BY cell_owned
CROSS JOIN job j ON j.id = c.job
CROSS JOIN tag t ON t.job = c.job AND t.id = c.tag
WHERE c.owner IS NOT NULL AND c.open = 1 AND (c.job, c.tag, c.task_index) > (?, ?, ?)
ORDER BY c.job, c.tag, c.task_index LIMIT {ATTEMPTS_PAGE}
"""


def list_open(pool: Pool) -> Iterator[OpenAttempt]:
    """Give every open attempt that has an owner, page by page."""
    place = (0, 0, 0)

    def page(db: sqlite3.Connection) -> list[tuple[Any, ...]]:
        return db.execute(_OWNED, place).fetchall()

    while True:
        rows = pool.read(page)
        for row in rows:
            ref = JobRef(JobKey(row[3], row[4] or None), row[5])
            yield OpenAttempt(ref, row[6], row[2], cell_of(row[7:]))
        if len(rows) < ATTEMPTS_PAGE:
            return
        place = rows[-1][:3]


WORKERS_PAGE = 50
"""Records read at once; each may take 800 KiB."""

_RECORD = "SELECT worker_id, body, renewed_at, lease_until FROM worker"
WORKER = f"{_RECORD} WHERE worker_id = ?"
_WORKERS = f"{_RECORD} WHERE worker_id > ? ORDER BY worker_id LIMIT {WORKERS_PAGE}"


def list_workers(pool: Pool) -> Iterator[WorkerRecord]:
    """Yield all worker records, page by page."""
    last = ""

    def page(db: sqlite3.Connection) -> list[tuple[Any, ...]]:
        return db.execute(_WORKERS, (last,)).fetchall()

    while True:
        rows = pool.read(page)
        for row in rows:
            yield WorkerRecord(*row)
        if len(rows) < WORKERS_PAGE:
            return
        last = rows[-1][0]


_BELOW = f"""
SELECT c.tag, c.task_index, t.name, {SELECTED}
FROM cell c CROSS JOIN tag t ON t.job = c.job AND t.id = c.tag
WHERE c.job = ? AND c.schema_version < ? AND (c.tag, c.task_index) > (?, ?)
ORDER BY c.tag, c.task_index LIMIT {PAGE}
"""


def cells(pool: Pool, jobs: Jobs, ref: JobRef, below: int) -> Iterator[StoredCell]:
    """Give them; no transaction is open between two of them. Raises: JobNotFound."""
    place = (0, -2)

    def page(db: sqlite3.Connection) -> list[tuple[Any, ...]]:
        return db.execute(_BELOW, (jobs.current(db, ref).id, below, *place)).fetchall()

    while True:
        rows = pool.read(page)
        for row in rows:
            cell = cell_of(row[3:])
            yield StoredCell(row[2], row[1], cell, mark_of(cell))
        if len(rows) < PAGE:
            return
        place = rows[-1][:2]
