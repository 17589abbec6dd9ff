"""The open attempts of all workers."""

# ruff: noqa: S608 - what is put together are our own column names; every value is bound

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

from celery_statemanager.records import JobKey, JobRef, OpenAttempt
from celery_statemanager.stores.sqlite.cells import SELECTED, cell_of
from celery_statemanager.stores.sqlite.pool import Pool

PAGE = 200

_OWNED = f"""
SELECT c.job, c.tag, c.task_index, j.job_id, j.run_token, j.incarnation, t.name, {SELECTED}
FROM cell c INDEXED BY cell_owned
CROSS JOIN job j ON j.id = c.job
CROSS JOIN tag t ON t.job = c.job AND t.id = c.tag
WHERE c.owner IS NOT NULL AND c.open = 1 AND (c.job, c.tag, c.task_index) > (?, ?, ?)
ORDER BY c.job, c.tag, c.task_index LIMIT {PAGE}
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
        if len(rows) < PAGE:
            return
        place = rows[-1][:3]
