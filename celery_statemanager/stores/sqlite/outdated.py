"""The cells of a job that an earlier release wrote, page by page."""

# ruff: noqa: S608 - what is put together are our own column names; every value is bound

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

from celery_statemanager.records import JobRef, KeptCell
from celery_statemanager.stores.sqlite.cells import SELECTED, cell_of
from celery_statemanager.stores.sqlite.jobs import Jobs
from celery_statemanager.stores.sqlite.pool import Pool
from celery_statemanager.stores.steps import mark_of

PAGE = 500

_BELOW = f"""
SELECT c.tag, c.task_index, t.name, {SELECTED}
FROM cell c CROSS JOIN tag t ON t.job = c.job AND t.id = c.tag
WHERE c.job = ? AND c.schema_version < ? AND (c.tag, c.task_index) > (?, ?)
ORDER BY c.tag, c.task_index LIMIT {PAGE}
"""


def cells(pool: Pool, jobs: Jobs, ref: JobRef, below: int) -> Iterator[KeptCell]:
    """Give them; no transaction is open between two of them. Raises: JobNotFound."""
    place = (0, -2)

    def page(db: sqlite3.Connection) -> list[tuple[Any, ...]]:
        return db.execute(_BELOW, (jobs.current(db, ref).id, below, *place)).fetchall()

    while True:
        rows = pool.read(page)
        for row in rows:
            cell = cell_of(row[3:])
            yield KeptCell(row[2], row[1], cell, mark_of(cell))
        if len(rows) < PAGE:
            return
        place = rows[-1][:2]
