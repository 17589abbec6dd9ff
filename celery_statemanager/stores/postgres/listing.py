"""Lists read page by page, without a transaction in between: states, outdated cells, open attempts, workers."""

# ruff: noqa: S608 - only names of our own columns and tables are interpolated; every value is bound

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
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
    message_with_place,
    to_datetime,
)
from celery_statemanager.stores.postgres.cells import SELECTED, Kind, cell_of, event_of, unescaped
from celery_statemanager.stores.postgres.connection import Connection
from celery_statemanager.stores.postgres.jobs import JobCache
from celery_statemanager.stores.postgres.pool import Pool
from celery_statemanager.stores.steps import mark_of

PAGE = 2_000
ATTEMPTS_PAGE = 200
WORKERS_PAGE = 50
"""Rows read at once; a worker's record may have 800 KiB."""

StateRow = tuple[Any, ...]
"""The columns ``STATE``."""

STATE = (
    'c."timestamp", t.name, c.task_index, c.status, c.message, c.payload, c.version, c.event_id, c.attempt, '
    "c.schema_version, c.open, c.stalled_since, c.stands_in"
)
IN_SCOPE = (
    f"t.job = c.job AND t.id = c.tag AND t.kind <> {Kind.CALLBACK:d} AND t.name = coalesce(%s, t.name) "
    "AND c.task_index = coalesce(%s, c.task_index)"
)
_STATES = f"""
SELECT {STATE} FROM {{cell}} c JOIN {{tag}} t ON {IN_SCOPE}
WHERE c.job = %s AND (c."timestamp", t.name, c.task_index) > (%s, %s, %s) AND c."timestamp" >= %s
ORDER BY c."timestamp", t.name, c.task_index LIMIT {PAGE}
"""
_IN_ROW = f"""
SELECT {STATE} FROM {{tag}} t JOIN {{cell}} c ON c.job = t.job AND c.tag = t.id
WHERE t.job = %s AND t.kind <> {Kind.CALLBACK:d} AND t.name = coalesce(%s, t.name) AND c.task_index = %s
ORDER BY c."timestamp", t.name
"""
_OUTDATED = f"""
SELECT c.tag, c.task_index, t.name, {SELECTED} FROM {{cell}} c JOIN {{tag}} t ON t.job = c.job AND t.id = c.tag
WHERE c.job = %s AND c.schema_version < %s AND (c.tag, c.task_index) > (%s, %s)
ORDER BY c.job, c.tag, c.task_index LIMIT {PAGE}
"""
_OWNED = f"""
SELECT c.job, c.tag, c.task_index, j.job_id, j.run_token, j.incarnation, t.name, {SELECTED}
FROM {{cell}} c JOIN {{job}} j ON j.id = c.job JOIN {{tag}} t ON t.job = c.job AND t.id = c.tag
WHERE c.owner IS NOT NULL AND (c.open OR (c.began_at <> 0 AND c.status >= 0 AND c.status < 2147483647))
  AND (c.job, c.tag, c.task_index) > (%s, %s, %s)
ORDER BY c.job, c.tag, c.task_index LIMIT {ATTEMPTS_PAGE}
"""
_RECORD = "SELECT worker_id, body, renewed_at, lease_until FROM {worker}"
_WORKERS = f"{_RECORD} WHERE worker_id > %s ORDER BY worker_id LIMIT {WORKERS_PAGE}"
WORKER = f"{_RECORD} WHERE worker_id = %s"


def list_states(pool: Pool, jobs: JobCache, ref: JobRef, scope: Scope) -> Iterator[State]:
    """Return the written cells of a scope by (timestamp, tag, task_index).

    Every cell that exists at the call is returned once. A cell that is written meanwhile is returned as it was before
    or after. Raises: JobNotFound, also if the job is deleted meanwhile.
    """
    fill = pool.names.fill

    def read(after: tuple[Any, ...], db: Connection) -> tuple[JobRecord, list[StateRow]]:
        cached = jobs.read(db, ref)
        if scope.task_index is None:
            values = (scope.tag, None, cached.id, *after, after[0])
            return cached.job, db.execute(fill(_STATES), values, binary=True).fetchall()
        return cached.job, db.execute(fill(_IN_ROW), (cached.id, scope.tag, scope.task_index)).fetchall()

    job, rows = pool.call(partial(read, (0, "", -1)))
    if scope.task_index is not None:
        return (state_of(job, row) for row in rows)
    return (state_of(job, row) for page in _without_repeats(_pages(pool, read, rows), job.num_tasks) for row in page)


def _pages(
    pool: Pool, read: Callable[[tuple[Any, ...], Connection], tuple[JobRecord, list[StateRow]]], rows: list[StateRow]
) -> Iterator[list[StateRow]]:
    """Yield the first page and the following ones; a page that is not full is the last."""
    yield rows
    while len(rows) == PAGE:
        _, rows = pool.call(partial(read, rows[-1][:3]))
        yield rows


def _without_repeats(pages: Iterator[list[StateRow]], num_tasks: int) -> Iterator[list[StateRow]]:
    """Remove cells that a page contains again because they were written meanwhile. Needs one bit of memory a cell."""
    passed: dict[str, bytearray] = {}
    for page in pages:
        fresh = []
        for row in page:
            bits = passed.get(row[1])
            if bits is None:
                bits = passed[row[1]] = bytearray(num_tasks // 8 + 1)
            at, bit = row[2] >> 3, 1 << (row[2] & 7)
            if not bits[at] & bit:
                bits[at] |= bit
                fresh.append(row)
        yield fresh


def state_of(job: JobRecord, row: StateRow) -> State:
    """Decode a row to the state that readers see, without creating a ``Cell`` unless the job is cancelled."""
    (timestamp, tag, task_index, status, message, payload, version, event_id, attempt, schema_version, is_open,
     stalled_since, stands_in) = row  # fmt: skip
    state = state_from_fields(
        job.job_id,
        task_index,
        tag,
        status,
        message_with_place(unescaped(message), stands_in) if stands_in else unescaped(message),
        json.loads(payload) if payload else None,
        to_datetime(timestamp),
        version,
        event_of(event_id) or None,
        attempt,
        schema_version,
        stalled_since is not None,
    )
    return state if job.cancelled is None else aggregate.mask_cancelled(job, Cell(status, open=is_open), state)


def list_outdated(pool: Pool, jobs: JobCache, ref: JobRef, below: int) -> Iterator[StoredCell]:
    """Yield the cells of a job with an earlier schema than ``below``. Raises: JobNotFound."""

    def read(after: tuple[Any, ...], db: Connection) -> list[tuple[Any, ...]]:
        return db.execute(pool.names.fill(_OUTDATED), (jobs.read(db, ref).id, below, *after)).fetchall()

    for row in _rows_by_pages(pool, read, (0, -(2**31)), PAGE):
        cell = cell_of(row[3:])
        yield StoredCell(row[2], row[1], cell, mark_of(cell))


def list_open_attempts(pool: Pool) -> Iterator[OpenAttempt]:
    """Yield every attempt that has an owner."""

    def read(after: tuple[Any, ...], db: Connection) -> list[tuple[Any, ...]]:
        return db.execute(pool.names.fill(_OWNED), after).fetchall()

    for row in _rows_by_pages(pool, read, (0, 0, 0), ATTEMPTS_PAGE):
        ref = JobRef(JobKey(row[3], row[4] or None), row[5])
        yield OpenAttempt(ref, row[6], row[2], cell_of(row[7:]))


def list_workers(pool: Pool) -> Iterator[WorkerRecord]:
    """Yield all worker records."""

    def read(after: tuple[Any, ...], db: Connection) -> list[tuple[Any, ...]]:
        return db.execute(pool.names.fill(_WORKERS), after).fetchall()

    for row in _rows_by_pages(pool, read, ("",), WORKERS_PAGE):
        yield WorkerRecord(*row)


def _rows_by_pages(
    pool: Pool,
    read: Callable[[tuple[Any, ...], Connection], list[tuple[Any, ...]]],
    after: tuple[Any, ...],
    size: int,
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a query whose first columns are its order; each page continues after the last row."""
    width = len(after)
    while True:
        rows = pool.call(partial(read, after))
        yield from rows
        if len(rows) < size:
            return
        after = rows[-1][:width]
