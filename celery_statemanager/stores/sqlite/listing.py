"""Lists read page by page, without a transaction in between: states, outdated cells, open attempts, workers."""

# ruff: noqa: S608 - only names of our own columns and tables are interpolated; every value is bound

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from functools import partial
from operator import itemgetter

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
    message_with_place,
    to_datetime,
)
from celery_statemanager.stores.kinds import Kind
from celery_statemanager.stores.sql_paging import Row, in_order, rows_by_pages, without_repeats
from celery_statemanager.stores.sqlite.cells import SELECTED, cell_of, unpacked
from celery_statemanager.stores.sqlite.jobs import JobCache
from celery_statemanager.stores.sqlite.pool import Pool
from celery_statemanager.stores.steps import mark_of

PAGE = 500
ATTEMPTS_PAGE = 200
WORKERS_PAGE = 50
"""Rows read at once; a worker's record may have 800 KiB."""

StateRow = Row
"""The columns ``_STATE``."""

_STATE = (
    "c.seq, c.timestamp, t.name, c.task_index, c.status, c.message, c.payload, c.version, c.event_id, c.attempt, "
    "c.schema_version, c.open, c.stalled_since, c.stands_in"
)
_TIMESTAMP = itemgetter(1)
_ORDER = itemgetter(1, 2, 3)
_CHANGED = f"""
SELECT {_STATE} FROM cell c INDEXED BY cell_seq CROSS JOIN tag t ON t.job = c.job AND t.id = c.tag
WHERE c.job = ? AND c.seq > ? AND t.kind <> {Kind.CALLBACK:d}
  AND t.name = ifnull(?, t.name) AND c.task_index = ifnull(?, c.task_index)
ORDER BY c.seq LIMIT ?
"""
_IN_ROW = f"""
SELECT {_STATE} FROM tag t CROSS JOIN cell c ON c.job = t.job AND c.tag = t.id
WHERE t.job = ? AND t.kind <> {Kind.CALLBACK:d} AND t.name = ifnull(?, t.name) AND c.task_index = ?
ORDER BY c.seq
"""
_OUTDATED = f"""
SELECT c.tag, c.task_index, t.name, {SELECTED}
FROM cell c CROSS JOIN tag t ON t.job = c.job AND t.id = c.tag
WHERE c.job = ? AND c.schema_version < ? AND (c.tag, c.task_index) > (?, ?)
ORDER BY c.tag, c.task_index LIMIT {PAGE}
"""
_OWNED = f"""
SELECT c.job, c.tag, c.task_index, j.job_id, j.run_token, j.incarnation, t.name, {SELECTED}
FROM cell c INDEXED BY cell_owned
CROSS JOIN job j ON j.id = c.job
CROSS JOIN tag t ON t.job = c.job AND t.id = c.tag
WHERE c.owner IS NOT NULL AND (c.open = 1 OR (c.began_at <> 0 AND c.status >= 0 AND c.status < 2147483647))
  AND (c.job, c.tag, c.task_index) > (?, ?, ?)
ORDER BY c.job, c.tag, c.task_index LIMIT {ATTEMPTS_PAGE}
"""
_RECORD = "SELECT worker_id, body, renewed_at, lease_until FROM worker"
_WORKERS = f"{_RECORD} WHERE worker_id > ? ORDER BY worker_id LIMIT {WORKERS_PAGE}"
WORKER = f"{_RECORD} WHERE worker_id = ?"


Change = tuple[int, int]
"""The number of a change, and its time."""

_LAST_CHANGE = """
SELECT seq, timestamp FROM cell INDEXED BY cell_seq WHERE job = ? AND seq <= ? ORDER BY seq DESC LIMIT 1
"""
_NEWEST = 2**63 - 1


def last_change(db: sqlite3.Connection, number: int, upto: int = _NEWEST) -> Change:
    """Return the last change of a job up to one of this number, among those that no later one of its cell follows."""
    return db.execute(_LAST_CHANGE, (number, upto)).fetchone() or (0, 0)


def list_changed(db: sqlite3.Connection, number: int, scope: Scope, after: int, limit: int) -> list[StateRow]:
    """Return the first cells of a scope whose last change has a later number, in the order of these changes."""
    if scope.task_index is not None and scope.task_index < 0:
        return []
    return db.execute(_CHANGED, (number, after, scope.tag, scope.task_index, limit)).fetchall()


def list_states(pool: Pool, jobs: JobCache, ref: JobRef, scope: Scope) -> Iterator[State]:
    """Return the written cells of a scope by (timestamp, tag, task_index).

    Every cell that exists at the call is returned once. A cell that is written meanwhile is returned as it was before
    or after. Raises: JobNotFound, also if the job is deleted meanwhile.
    """

    def read(db: sqlite3.Connection) -> tuple[JobRecord, list[StateRow]]:
        cached = jobs.current(db, ref)
        if scope.task_index is None:
            return cached.job, list_changed(db, cached.id, scope, 0, PAGE)
        return cached.job, db.execute(_IN_ROW, (cached.id, scope.tag, scope.task_index)).fetchall()

    job, rows = pool.read(read)
    if scope.task_index is not None:
        return (state_of(job, row) for row in sorted(rows, key=_ORDER))
    pages = without_repeats(_pages_of_changes(pool, jobs, ref, scope, rows), job.num_tasks, tag=2, task_index=3)
    return (state_of(job, row) for page in in_order(pages, _ORDER, _TIMESTAMP) for row in page)


def state_of(job: JobRecord, row: StateRow) -> State:
    """Decode a row to the state that readers see, without creating a ``Cell`` unless the job is cancelled."""
    (_, timestamp, tag, task_index, status, message, payload, version, event_id, attempt, schema_version, is_open,
     stalled_since, stands_in) = row  # fmt: skip
    state = state_from_fields(
        job.job_id,
        task_index,
        tag,
        status,
        message_with_place(message, stands_in) if stands_in else message,
        json.loads(payload) if payload else None,
        to_datetime(timestamp),
        version,
        unpacked(event_id) or None,
        attempt,
        schema_version,
        stalled_since != 0,
    )
    return state if job.cancelled is None else aggregate.mask_cancelled(job, Cell(status, open=is_open == 1), state)


def list_outdated(pool: Pool, jobs: JobCache, ref: JobRef, below: int) -> Iterator[StoredCell]:
    """Yield the cells of a job with an earlier schema than ``below``. Raises: JobNotFound."""

    def read(after: Row, db: sqlite3.Connection) -> list[Row]:
        return db.execute(_OUTDATED, (jobs.current(db, ref).id, below, *after)).fetchall()

    for row in rows_by_pages(lambda after: pool.read(partial(read, after)), (0, -2), PAGE):
        cell = cell_of(row[3:])
        yield StoredCell(row[2], row[1], cell, mark_of(cell))


def list_open_attempts(pool: Pool) -> Iterator[OpenAttempt]:
    """Yield every attempt that has an owner."""
    for row in _rows_by_pages(pool, _OWNED, (0, 0, 0), ATTEMPTS_PAGE):
        ref = JobRef(JobKey(row[3], row[4] or None), row[5])
        yield OpenAttempt(ref, row[6], row[2], cell_of(row[7:]))


def list_workers(pool: Pool) -> Iterator[WorkerRecord]:
    """Yield all worker records."""
    for row in _rows_by_pages(pool, _WORKERS, ("",), WORKERS_PAGE):
        yield WorkerRecord(*row)


def _rows_by_pages(pool: Pool, text: str, after: Row, size: int) -> Iterator[Row]:
    """Yield the rows of a query whose only values are those of its order."""
    return rows_by_pages(lambda after: pool.read(lambda db: db.execute(text, after).fetchall()), after, size)


def _pages_of_changes(
    pool: Pool, jobs: JobCache, ref: JobRef, scope: Scope, rows: list[StateRow]
) -> Iterator[list[StateRow]]:
    """Yield the first page and the following ones; a page that is not full is the last."""

    def read(db: sqlite3.Connection) -> list[StateRow]:
        return list_changed(db, jobs.current(db, ref).id, scope, rows[-1][0], PAGE)

    yield rows
    while len(rows) == PAGE:
        rows = pool.read(read)
        yield rows
