"""The encoding of jobs as rows, a cache of decoded jobs, and the removal of deleted ones."""

# ruff: noqa: S608 - only names of our own columns and tables are interpolated; every value is bound

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from celery_statemanager.codec import control_from_json, control_to_json, plan_from_json, plan_to_json
from celery_statemanager.errors import JobExists, JobNotFound
from celery_statemanager.plan import Plan
from celery_statemanager.records import JobKey, JobRecord, JobRef, Listed, Page

MAX_CACHED_JOBS = 128

_SELECT = """
SELECT j.id, j.touched, j.job_id, j.run_token, j.incarnation, j.num_tasks, j.control, j.created_at,
  j.revision, j.schema_version,
  coalesce((
    SELECT c.timestamp FROM cell c INDEXED BY cell_seq WHERE c.job = j.id ORDER BY c.seq DESC LIMIT 1
  ), j.created_at) AS active
FROM job j
"""
_INSERT = """
INSERT INTO job
  (job_id, run_token, incarnation, num_tasks, created_at, touched, due, tombstoned, revision, schema_version, control,
  plan)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_ADOPT = """
UPDATE job SET incarnation = ?, schema_version = 0, revision = revision + 1
WHERE job_id = ? AND run_token = ? AND incarnation = ?
"""
_REVISION = "SELECT revision FROM job WHERE id = ? AND incarnation = ?"
_UPDATE = "UPDATE job SET control = ?, due = ?, tombstoned = ?, revision = ?, schema_version = ? WHERE id = ?"

_TABLES = (
    ("cell", "tag, task_index"),
    ("gap", "tag, high"),
    ("tag", "id"),
    ("claim", "publisher"),
    ("returned", "begun, low"),
    ("value", "task_index"),
)
"""The tables with rows of a job, and the rest of their primary keys."""


@dataclass(frozen=True, slots=True)
class CachedJob:
    """A decoded job.

    Attributes:
        id: the number in the keys of its cells; never used again in the same file.
        latest_time: the latest time in the record that the store has set.
    """

    id: int
    job: JobRecord
    latest_time: int


class JobCache:
    """Reads jobs and caches the decoded ones by incarnation. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cached: dict[JobRef, CachedJob] = {}

    def peek(self, ref: JobRef) -> CachedJob | None:
        """Return a job from the cache, or None. It may be out of date or deleted."""
        return self._cached.get(ref)

    def get_cached(self, db: sqlite3.Connection, ref: JobRef) -> CachedJob:
        """Return a job from the cache, else from the file. It may be out of date or deleted. Raises: JobNotFound."""
        cached = self._cached.get(ref)
        return cached if cached is not None else self.read(db, ref)

    def current(self, db: sqlite3.Connection, ref: JobRef) -> CachedJob:
        """Return the current record of an incarnation, except its last activity. Raises: JobNotFound."""
        cached = self.get_cached(db, ref)
        row = db.execute(_REVISION, (cached.id, ref.incarnation)).fetchone()
        return cached if row is not None and row[0] == cached.job.revision else self.read(db, ref)

    def read(self, db: sqlite3.Connection, ref: JobRef) -> CachedJob:
        """Return the current record of an incarnation. Raises: JobNotFound."""
        cached = self.get(db, ref.key)
        if cached.job.incarnation != ref.incarnation:
            raise JobNotFound(*ref.key)
        return cached

    def get(self, db: sqlite3.Connection, key: JobKey) -> CachedJob:
        """Return the current job under a key. Raises: JobNotFound."""
        row = db.execute(f"{_SELECT} WHERE j.job_id = ? AND j.run_token = ?", stored_key(key)).fetchone()
        if row is None:
            raise JobNotFound(*key)
        return self._decode(db, row)

    def page(
        self,
        db: sqlite3.Connection,
        cursor: str | None,
        limit: int,
        *,
        due: bool,
        tombstoned: bool,
        idle_before: int | None,
    ) -> Page:
        """Return a page of jobs, ordered by creation or, for idle ones, by ``touched``."""
        by_time = idle_before is not None and not due and not tombstoned
        order = "j.touched, j.id" if by_time else "j.id"
        terms = ["j.due = 1"] * due + ["j.tombstoned = 1"] * tombstoned
        values: list[int] = []
        if idle_before is not None:
            terms += ["j.touched < ?", "active < ?"]
            values += [idle_before, idle_before]
        if cursor is not None:
            terms.append("(j.touched, j.id) > (?, ?)" if by_time else "j.id > ?")
            values += [int(part) for part in cursor.split(".")]
        index = "job_touched" if by_time else "job_due" if due else "job_tombstoned" if tombstoned else ""
        index = index and f"INDEXED BY {index}"
        where = f"WHERE {' AND '.join(terms)}" if terms else ""
        rows = db.execute(f"{_SELECT} {index} {where} ORDER BY {order} LIMIT ?", (*values, limit + 1)).fetchall()
        page = rows[:limit]
        if not page:
            return Page([], None)
        last = f"{page[-1][1]}.{page[-1][0]}" if by_time else str(page[-1][0])
        return Page([self._decode(db, row).job for row in page], last if len(rows) > limit else None)

    def newest(self, db: sqlite3.Connection, before: int | None, limit: int) -> list[Listed]:
        """Return jobs by descending number, which is that of their creation, below a number if one is given."""
        where, values = ("", ()) if before is None else ("WHERE j.id < ?", (before,))
        rows = db.execute(f"{_SELECT} {where} ORDER BY j.id DESC LIMIT ?", (*values, limit)).fetchall()
        return [Listed(self._decode(db, row).job, str(row[0])) for row in rows]

    def _decode(self, db: sqlite3.Connection, row: Sequence[Any]) -> CachedJob:
        number, _, job_id, run_token, incarnation, num_tasks, control, created_at, revision, schema, active = row
        ref = JobRef(JobKey(job_id, run_token or None), incarnation)
        cached = self._cached.get(ref)
        if cached is not None and cached.id != number:
            cached = None
        if cached is None or cached.job.revision != revision:
            job = JobRecord(
                *ref.key,
                incarnation,
                num_tasks,
                cached.job.plan if cached else _plan(db, number),
                created_at=created_at,
                revision=revision,
                schema_version=schema,
                **control_from_json(control),
            )
            latest_time = max(job.created_at, *(latch.decided_at or 0 for latch in job.latches.values()))
            cached = CachedJob(number, job, latest_time)
            with self._lock:
                self._cached.pop(ref, None)
                self._cached[ref] = cached
                if len(self._cached) > MAX_CACHED_JOBS:
                    del self._cached[next(iter(self._cached))]
        return replace(cached, job=replace(cached.job, last_activity=active, latches=dict(cached.job.latches)))


def insert(db: sqlite3.Connection, job: JobRecord) -> None:
    """Store a new job. Raises: JobExists."""
    fixed = (*stored_key(job.key), job.incarnation, job.num_tasks, job.created_at, job.last_activity)
    changeable = (*_list_flags(job), job.revision, job.schema_version, control_to_json(job))
    try:
        db.execute(_INSERT, (*fixed, *changeable, plan_to_json(job.plan)))
    except sqlite3.IntegrityError:
        raise JobExists(*job.key) from None


def update(db: sqlite3.Connection, number: int, job: JobRecord) -> None:
    """Store the changeable fields of a job."""
    db.execute(_UPDATE, (control_to_json(job), *_list_flags(job), job.revision, job.schema_version, number))


def list_runs(db: sqlite3.Connection, job_id: str, limit: int) -> list[str | None]:
    """Return the run tokens of a job_id."""
    rows = db.execute("SELECT run_token FROM job WHERE job_id = ? LIMIT ?", (job_id, limit)).fetchall()
    return [token or None for (token,) in rows]


def adopt(db: sqlite3.Connection, ref: JobRef, incarnation: str) -> None:
    """Change the incarnation of a job, unless it has changed already."""
    db.execute(_ADOPT, (incarnation, *stored_key(ref.key), ref.incarnation))


def discard(db: sqlite3.Connection, number: int) -> None:
    """Delete a job and queue its rows for ``purge``. Its number is never used again, so the rows are invisible."""
    db.execute("INSERT INTO garbage (job, incarnation) SELECT id, incarnation FROM job WHERE id = ?", (number,))
    db.execute("DELETE FROM job WHERE id = ?", (number,))


def purge(db: sqlite3.Connection, limit: int) -> int:
    """Remove up to about ``limit`` rows of discarded jobs; return their number."""
    removed = 0
    while removed < limit:
        oldest = db.execute("SELECT min(job) FROM garbage").fetchone()[0]
        if oldest is None:
            break
        removed += purge_job(db, oldest, limit - removed)
    return removed


def purge_job(db: sqlite3.Connection, number: int, limit: int) -> int:
    """Remove up to ``limit`` rows of one discarded job; return their number, plus one if none is left."""
    removed = 0
    for table, key in _TABLES:
        rows = f"SELECT job, {key} FROM {table} WHERE job = ? LIMIT ?"
        removed += db.execute(f"DELETE FROM {table} WHERE (job, {key}) IN ({rows})", (number, limit - removed)).rowcount
        if removed >= limit:
            return removed
    blocks = "SELECT b.rowid FROM block b JOIN garbage g USING (incarnation) WHERE g.job = ? LIMIT ?"
    removed += db.execute(f"DELETE FROM block WHERE rowid IN ({blocks})", (number, limit - removed)).rowcount
    if removed >= limit:
        return removed
    db.execute("DELETE FROM outbox WHERE job = ?", (number,))
    db.execute("DELETE FROM garbage WHERE job = ?", (number,))
    return removed + 1


def _list_flags(job: JobRecord) -> tuple[int, int]:
    """Return the columns by which lists of jobs are filtered."""
    return int(job.due), int(job.tombstoned_at is not None)


def _plan(db: sqlite3.Connection, number: int) -> Plan | None:
    return plan_from_json(db.execute("SELECT plan FROM job WHERE id = ?", (number,)).fetchone()[0])


def stored_key(key: JobKey) -> tuple[str, str]:
    """Encode a key; a missing run token becomes the empty string, because SQLite treats NULLs as distinct."""
    return key.job_id, key.run_token or ""
