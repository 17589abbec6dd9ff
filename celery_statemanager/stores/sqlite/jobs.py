"""How a job is spelt as a row; jobs are parsed once and found again by their incarnation."""

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
from celery_statemanager.records import JobKey, JobRecord, JobRef, Page

MOST_KNOWN = 128

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


@dataclass(frozen=True, slots=True)
class CachedJob:
    """A job.

    Attributes:
        id: the number under which its cells are kept; never used again in the same file.
        said_at: the newest time that the store itself has put on the record.
    """

    id: int
    job: JobRecord
    said_at: int


class Jobs:
    """Reads jobs; remembers what was parsed. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[JobRef, CachedJob] = {}

    def known(self, ref: JobRef) -> CachedJob | None:
        """Give a job that may be out of date, or gone, if it was parsed before."""
        return self._known.get(ref)

    def remembered(self, db: sqlite3.Connection, ref: JobRef) -> CachedJob:
        """Give a job that may be out of date, or gone. Raises: JobNotFound – if it is told at once."""
        known = self._known.get(ref)
        return known if known is not None else self.read(db, ref)

    def current(self, db: sqlite3.Connection, ref: JobRef) -> CachedJob:
        """Give an incarnation as it is now, but for its last activity. Raises: JobNotFound."""
        known = self.remembered(db, ref)
        row = db.execute(_REVISION, (known.id, ref.incarnation)).fetchone()
        return known if row is not None and row[0] == known.job.revision else self.read(db, ref)

    def read(self, db: sqlite3.Connection, ref: JobRef) -> CachedJob:
        """Give an incarnation as it is now. Raises: JobNotFound."""
        known = self.get(db, ref.key)
        if known.job.incarnation != ref.incarnation:
            raise JobNotFound(*ref.key)
        return known

    def get(self, db: sqlite3.Connection, key: JobKey) -> CachedJob:
        """Give the job that is kept under a key now. Raises: JobNotFound."""
        row = db.execute(f"{_SELECT} WHERE j.job_id = ? AND j.run_token = ?", _key(key)).fetchone()
        if row is None:
            raise JobNotFound(*key)
        return self._parsed(db, row)

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
        """List jobs in the order of their creation or, the idle ones, of their last activity to the minute."""
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
        return Page([self._parsed(db, row).job for row in page], last if len(rows) > limit else None)

    def _parsed(self, db: sqlite3.Connection, row: Sequence[Any]) -> CachedJob:
        number, _, job_id, run_token, incarnation, num_tasks, control, created_at, revision, schema, active = row
        ref = JobRef(JobKey(job_id, run_token or None), incarnation)
        known = self._known.get(ref)
        if known is not None and known.id != number:
            known = None
        if known is None or known.job.revision != revision:
            job = JobRecord(
                *ref.key,
                incarnation,
                num_tasks,
                known.job.plan if known else _plan(db, number),
                created_at=created_at,
                revision=revision,
                schema_version=schema,
                **control_from_json(control),
            )
            known = self._remember(ref, CachedJob(number, job, _said_at(job)))
        return replace(known, job=replace(known.job, last_activity=active, latches=dict(known.job.latches)))

    def _remember(self, ref: JobRef, known: CachedJob) -> CachedJob:
        with self._lock:
            self._known.pop(ref, None)
            self._known[ref] = known
            if len(self._known) > MOST_KNOWN:
                del self._known[next(iter(self._known))]
        return known


def insert(db: sqlite3.Connection, job: JobRecord) -> None:
    """Keep a new job. Raises: JobExists."""
    fixed = (*_key(job.key), job.incarnation, job.num_tasks, job.created_at, job.last_activity)
    moving = (*_marks(job), job.revision, job.schema_version, control_to_json(job))
    try:
        db.execute(_INSERT, (*fixed, *moving, plan_to_json(job.plan)))
    except sqlite3.IntegrityError:
        raise JobExists(*job.key) from None


def update(db: sqlite3.Connection, number: int, job: JobRecord) -> None:
    """Store what may change of a job."""
    db.execute(_UPDATE, (control_to_json(job), *_marks(job), job.revision, job.schema_version, number))


def runs(db: sqlite3.Connection, job_id: str, limit: int) -> list[str | None]:
    """Return the run tokens of a job_id, by the index that keeps the names unique."""
    found = db.execute("SELECT run_token FROM job WHERE job_id = ? LIMIT ?", (job_id, limit))
    return [token or None for (token,) in found.fetchall()]


def adopt(db: sqlite3.Connection, ref: JobRef, incarnation: str) -> None:
    """Give a job another incarnation, if it is still that one."""
    db.execute(_ADOPT, (incarnation, *_key(ref.key), ref.incarnation))


def _marks(job: JobRecord) -> tuple[int, int]:
    """Give what lists of jobs ask for."""
    return int(job.due), int(job.tombstoned_at is not None)


def _said_at(job: JobRecord) -> int:
    return max(job.created_at, *(latch.decided_at or 0 for latch in job.latches.values()))


def _plan(db: sqlite3.Connection, number: int) -> Plan | None:
    return plan_from_json(db.execute("SELECT plan FROM job WHERE id = ?", (number,)).fetchone()[0])


def _key(key: JobKey) -> tuple[str, str]:
    """Spell no run token as the empty text, which no run token is: NULLs would not be unique."""
    return key.job_id, key.run_token or ""


_TABLES = (("cell", "tag, task_index"), ("gap", "tag, high"), ("tag", "id"))


def discard(db: sqlite3.Connection, number: int) -> None:
    """Take a job off the books; its number is never used again, so nobody finds its rows."""
    db.execute("DELETE FROM job WHERE id = ?", (number,))
    db.execute("INSERT INTO garbage (job) VALUES (?)", (number,))


def purge(db: sqlite3.Connection, limit: int) -> int:
    """Remove up to about ``limit`` rows of discarded jobs; give their number."""
    removed = 0
    while removed < limit:
        oldest = db.execute("SELECT min(job) FROM garbage").fetchone()[0]
        if oldest is None:
            break
        removed += purge_job(db, oldest, limit - removed)
    return removed


def purge_job(db: sqlite3.Connection, number: int, limit: int) -> int:
    """Remove up to ``limit`` rows of one discarded job; return their number, and one more for the last of them."""
    removed = 0
    for table, key in _TABLES:
        rows = f"SELECT job, {key} FROM {table} WHERE job = ? LIMIT ?"
        removed += db.execute(f"DELETE FROM {table} WHERE (job, {key}) IN ({rows})", (number, limit - removed)).rowcount
        if removed >= limit:
            return removed
    db.execute("DELETE FROM garbage WHERE job = ?", (number,))
    return removed + 1
