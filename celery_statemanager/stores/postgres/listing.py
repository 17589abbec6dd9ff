"""Lists read page by page, without a transaction in between: states, outdated cells, open attempts, workers."""

# ruff: noqa: S608 - only names of our own columns and tables are interpolated; every value is bound

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
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
    message_with_place,
    to_datetime,
)
from celery_statemanager.stores.postgres.cells import SELECTED, cell_of, event_of, unescaped
from celery_statemanager.stores.postgres.connection import Connection
from celery_statemanager.stores.postgres.jobs import JobCache
from celery_statemanager.stores.postgres.pool import Pool
from celery_statemanager.stores.sql_paging import Row, in_order, rows_by_pages, without_repeats
from celery_statemanager.stores.steps import mark_of

PAGE = 2_000
ATTEMPTS_PAGE = 200
WORKERS_PAGE = 50
"""Rows read at once; a worker's record may have 800 KiB."""

_TIMESTAMP = itemgetter(0)

StateRow = Row
"""The columns ``STATE``."""

STATE = (
    'c."timestamp", c.tag, c.task_index, c.status, c.message, c.payload, c.version, c.event_id, c.attempt, '
    "c.schema_version, c.open, c.stalled_since, c.stands_in"
)
_SELECT = f"SELECT {STATE} FROM {{cell}} c WHERE c.job = %s AND c.task_index >= 0"
_AFTER = 'c."timestamp" >= %s AND (c."timestamp", c.tag, c.task_index) > (%s, %s, %s)'
_ORDER = f'ORDER BY c.job, c."timestamp", c.tag, c.task_index LIMIT {PAGE}'
_STATES = f"{_SELECT} AND {_AFTER} {_ORDER}"
_IN_COLUMN = f"{_SELECT} AND c.tag = ANY(%s) AND {_AFTER} {_ORDER}"
_IN_ROW = f"{_SELECT} AND c.tag = ANY(%s) AND c.task_index = %s"
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
    tags: dict[int, str] = {}

    def read(after: tuple[int, int, int], db: Connection) -> tuple[JobRecord, list[StateRow]]:
        cached = jobs.read(db, ref)
        if not tags:
            tags.update(jobs.tags(db, cached))
        values: tuple[Any, ...]
        chosen = [number for number, name in tags.items() if scope.tag in (None, name)]
        if scope.task_index is not None:
            text, values = _IN_ROW, (chosen, scope.task_index)
        elif scope.tag is not None:
            text, values = _IN_COLUMN, (chosen, after[0], *after)
        else:
            text, values = _STATES, (after[0], *after)
        rows = db.execute(fill(text), (cached.id, *values), binary=True).fetchall()
        if any(row[1] not in tags for row in rows):
            tags.update(jobs.tags(db, cached))
        return cached.job, rows

    job, rows = pool.call(partial(read, (0, 0, -1)))
    pages = without_repeats(_pages(pool, read, rows, scope), job.num_tasks, tag=1, task_index=2)
    ordered = in_order(pages, lambda row: (row[0], tags[row[1]], row[2]), _TIMESTAMP)
    return (state_of(job, tags[row[1]], row) for page in ordered for row in page)


def _pages(
    pool: Pool,
    read: Callable[[tuple[int, int, int], Connection], tuple[JobRecord, list[StateRow]]],
    rows: list[StateRow],
    scope: Scope,
) -> Iterator[list[StateRow]]:
    """Yield the first page and the following ones; a page that is not full, and a row of the grid, is the last."""
    yield rows
    while len(rows) == PAGE and scope.task_index is None:
        _, rows = pool.call(partial(read, rows[-1][:3]))
        yield rows


def state_of(job: JobRecord, tag: str, row: StateRow) -> State:
    """Decode a row of a tag to the state that readers see, without creating a ``Cell`` unless the job is cancelled."""
    (timestamp, _, task_index, status, message, payload, version, event_id, attempt, schema_version, is_open,
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

    def read(after: Row, db: Connection) -> list[Row]:
        return db.execute(pool.names.fill(_OUTDATED), (jobs.read(db, ref).id, below, *after)).fetchall()

    for row in rows_by_pages(lambda after: pool.call(partial(read, after)), (0, -(2**31)), PAGE):
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
    filled = pool.names.fill(text)
    return rows_by_pages(lambda after: pool.call(lambda db: db.execute(filled, after).fetchall()), after, size)
