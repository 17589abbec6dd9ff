"""The encoding of jobs as rows, a cache of decoded jobs, and the removal of deleted ones."""

# ruff: noqa: S608 - only names of our own columns and tables are interpolated; every value is bound

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg

from celery_statemanager.codec import control_from_json, control_to_json, plan_from_json, plan_to_json
from celery_statemanager.errors import JobExists, JobNotFound
from celery_statemanager.plan import Plan
from celery_statemanager.records import JobKey, JobRecord, JobRef, Listed, Page
from celery_statemanager.stores.kinds import Kind
from celery_statemanager.stores.postgres.connection import Connection
from celery_statemanager.stores.postgres.names import Names
from celery_statemanager.stores.postgres.put import CLOCK

MAX_CACHED_JOBS = 128

_NEWEST = 'SELECT c."timestamp" FROM {cell} c WHERE c.job = j.id ORDER BY c.job DESC, c."timestamp" DESC LIMIT 1'
COLUMNS = (
    "j.id, j.touched, j.job_id, j.run_token, j.incarnation, j.num_tasks, j.control, j.created_at, "
    f"j.revision, j.schema_version, coalesce(({_NEWEST}), j.created_at)"
)
"""The columns that ``JobCache.decode`` reads."""
WIDTH = 11
_SELECT = f"SELECT {COLUMNS} FROM {{job}} j"
BY_KEY = f"{_SELECT} WHERE j.job_id = %s AND j.run_token = %s"
BY_NUMBER = f"{_SELECT} WHERE j.id = %s AND j.incarnation = %s"
_INSERT = f"""
INSERT INTO {{job}}
  (job_id, run_token, incarnation, num_tasks, created_at, touched, due, tombstoned, revision, schema_version, control,
  plan)
SELECT %s, %s, %s, %s, clock.now, clock.now, %s, %s, 1, %s, %s, %s FROM (SELECT {CLOCK} AS now) clock
ON CONFLICT DO NOTHING RETURNING created_at
"""
UPDATE = """
UPDATE {job} SET control = %s, due = %s, tombstoned = %s, revision = %s, schema_version = %s WHERE id = %s
"""
_ADOPT = """
UPDATE {job} SET incarnation = %s, schema_version = 0, revision = revision + 1
WHERE job_id = %s AND run_token = %s AND incarnation = %s
"""
_TABLES = (
    ("cell", "tag, task_index"),
    ("gap", "tag, shard, high"),
    ("tally", "tag, shard"),
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
        id: the number in the keys of its cells; never used again in the same schema.
        latest_time: the latest time in the record that the store has set.
        columns: the known numbers of its tags by kind and name. They never change.
        few_left: whether ends of cells need the exclusive lock, because few cells are left; see ``put``.
    """

    id: int
    job: JobRecord
    latest_time: int
    columns: dict[tuple[Kind, str], int] = field(default_factory=dict)
    few_left: list[bool] = field(default_factory=lambda: [False])


class JobCache:
    """Reads jobs and caches the decoded ones by incarnation. Thread-safe."""

    def __init__(self, names: Names) -> None:
        self._lock = threading.Lock()
        self._cached: dict[JobRef, CachedJob] = {}
        self._names = names

    def peek(self, ref: JobRef) -> CachedJob | None:
        """Return a job from the cache, or None. It may be out of date or deleted."""
        return self._cached.get(ref)

    def get_cached(self, db: Connection, ref: JobRef) -> CachedJob:
        """Return a job from the cache, else from the server. It may be out of date or deleted. Raises: JobNotFound."""
        cached = self._cached.get(ref)
        return cached if cached is not None else self.read(db, ref)

    def read(self, db: Connection, ref: JobRef) -> CachedJob:
        """Return the current record of an incarnation. Raises: JobNotFound."""
        cached = self.get(db, ref.key)
        if cached.job.incarnation != ref.incarnation:
            raise JobNotFound(*ref.key)
        return cached

    def get(self, db: psycopg.Connection[Any], key: JobKey) -> CachedJob:
        """Return the current job under a key. Raises: JobNotFound."""
        row = db.execute(self._names.fill(BY_KEY), stored_key(key)).fetchone()
        if row is None:
            raise JobNotFound(*key)
        return self.decode(db, row)

    def tags(self, db: Connection, cached: CachedJob) -> dict[int, str]:
        """Read the tags of a job by their numbers."""
        text = self._names.fill("SELECT kind, name, id FROM {tag} WHERE job = %s")
        rows = db.execute(text, (cached.id,)).fetchall()
        cached.columns.update({(Kind(kind), name): number for kind, name, number in rows})
        return {number: name for _, name, number in rows}

    def page(
        self, db: Connection, cursor: str | None, limit: int, *, due: bool, tombstoned: bool, idle_before: int | None
    ) -> Page:
        """Return a page of jobs, ordered by creation or, for idle ones, by ``touched``."""
        by_time = idle_before is not None and not due and not tombstoned
        order = "j.touched, j.id" if by_time else "j.id"
        terms = ["j.due"] * due + ["j.tombstoned"] * tombstoned
        values: list[int] = []
        if idle_before is not None:
            terms += ["j.touched < %s", f"coalesce(({_NEWEST}), j.created_at) < %s"]
            values += [idle_before, idle_before]
        if cursor is not None:
            terms.append("(j.touched, j.id) > (%s, %s)" if by_time else "j.id > %s")
            values += [int(part) for part in cursor.split(".")]
        where = f"WHERE {' AND '.join(terms)}" if terms else ""
        text = self._names.fill(f"{_SELECT} {where} ORDER BY {order} LIMIT %s")
        rows = db.execute(text, (*values, limit + 1)).fetchall()
        page = rows[:limit]
        if not page:
            return Page([], None)
        last = f"{page[-1][1]}.{page[-1][0]}" if by_time else str(page[-1][0])
        return Page([self.decode(db, row).job for row in page], last if len(rows) > limit else None)

    def newest(self, db: Connection, before: int | None, limit: int) -> list[Listed]:
        """Return jobs by descending number, which is that of their creation, below a number if one is given."""
        where, values = ("", ()) if before is None else ("WHERE j.id < %s", (before,))
        text = self._names.fill(f"{_SELECT} {where} ORDER BY j.id DESC LIMIT %s")
        rows = db.execute(text, (*values, limit)).fetchall()
        return [Listed(self.decode(db, row).job, str(row[0])) for row in rows]

    def decode(self, db: psycopg.Connection[Any], row: Sequence[Any]) -> CachedJob:
        """Return the job of a row with the columns ``COLUMNS``. Its plan is read at most once."""
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
                cached.job.plan if cached else self._plan(db, number),
                created_at=created_at,
                revision=revision,
                schema_version=schema,
                **control_from_json(control),
            )
            cached = CachedJob(number, job, latest_time(job), *((cached.columns, cached.few_left) if cached else ()))
            self.remember(ref, cached)
        return replace(cached, job=replace(cached.job, last_activity=active, latches=dict(cached.job.latches)))

    def remember(self, ref: JobRef, cached: CachedJob) -> None:
        """Put a job that was read or committed into the cache."""
        with self._lock:
            self._cached.pop(ref, None)
            self._cached[ref] = cached
            if len(self._cached) > MAX_CACHED_JOBS:
                del self._cached[next(iter(self._cached))]

    def _plan(self, db: psycopg.Connection[Any], number: int) -> Plan | None:
        row = db.execute(self._names.fill("SELECT plan FROM {job} WHERE id = %s"), (number,)).fetchone()
        return plan_from_json(row[0]) if row else None


def latest_time(job: JobRecord) -> int:
    """Return the latest time in a record that the store has set."""
    return max(job.created_at, *(latch.decided_at or 0 for latch in job.latches.values()))


def insert(db: psycopg.Connection[Any], names: Names, job: JobRecord) -> JobRecord:
    """Store a new job in the transaction of any connection, and return it with its times. Raises: JobExists."""
    values = (*stored_key(job.key), job.incarnation, job.num_tasks, *_list_flags(job), job.schema_version)
    row = db.execute(names.fill(_INSERT), (*values, control_to_json(job), plan_to_json(job.plan))).fetchone()
    if row is None:
        raise JobExists(*job.key)
    return replace(job, created_at=row[0], last_activity=row[0], revision=1, latches=dict(job.latches))


def changed_values(number: int, job: JobRecord) -> tuple[Any, ...]:
    """Return the values of ``UPDATE``."""
    return (control_to_json(job), *_list_flags(job), job.revision, job.schema_version, number)


def list_runs(db: Connection, names: Names, job_id: str, limit: int) -> list[str | None]:
    """Return the run tokens of a job_id."""
    text = names.fill("SELECT run_token FROM {job} WHERE job_id = %s LIMIT %s")
    return [token or None for (token,) in db.execute(text, (job_id, limit)).fetchall()]


def adopt(db: Connection, names: Names, ref: JobRef, incarnation: str) -> None:
    """Change the incarnation of a job, unless it has changed already."""
    db.execute(names.fill(_ADOPT), (incarnation, *stored_key(ref.key), ref.incarnation))


def discard(names: Names, number: int) -> list[tuple[str, tuple[Any, ...]]]:
    """Return the statements that delete a job and queue its rows for ``purge``. Its number is never used again."""
    queue = "INSERT INTO {garbage} (job, incarnation) SELECT id, incarnation FROM {job} WHERE id = %s"
    return [(names.fill(queue), (number,)), (names.fill("DELETE FROM {job} WHERE id = %s"), (number,))]


def purge(db: Connection, names: Names, limit: int) -> int:
    """Remove up to about ``limit`` rows of discarded jobs; return their number. Needs a transaction.

    A job that another process purges at the moment is left to it.
    """
    removed = 0
    oldest = names.fill("SELECT job FROM {garbage} ORDER BY job LIMIT 1 FOR UPDATE SKIP LOCKED")
    while removed < limit:
        row = db.execute(oldest).fetchone()
        if row is None:
            break
        removed += purge_job(db, names, row[0], limit - removed)
    return removed


def purge_job(db: Connection, names: Names, number: int, limit: int) -> int:
    """Remove up to ``limit`` rows of one discarded job; return their number, plus one if none is left."""
    removed = 0
    for table, key in _TABLES:
        rows = f"SELECT job, {key} FROM {{{table}}} WHERE job = %s LIMIT %s"
        text = names.fill(f"DELETE FROM {{{table}}} WHERE (job, {key}) IN ({rows})")
        removed += db.execute(text, (number, limit - removed)).rowcount
        if removed >= limit:
            return removed
    blocks = (
        "SELECT b.incarnation, b.first FROM {block} b JOIN {garbage} g USING (incarnation) WHERE g.job = %s LIMIT %s"
    )
    text = names.fill(f"DELETE FROM {{block}} WHERE (incarnation, first) IN ({blocks})")
    removed += db.execute(text, (number, limit - removed)).rowcount
    if removed >= limit:
        return removed
    for table in ("outbox", "watcher", "garbage"):
        db.execute(names.fill(f"DELETE FROM {{{table}}} WHERE job = %s"), (number,))
    return removed + 1


def _list_flags(job: JobRecord) -> tuple[bool, bool]:
    """Return the columns by which lists of jobs are filtered."""
    return job.due, job.tombstoned_at is not None


def stored_key(key: JobKey) -> tuple[str, str]:
    """Encode a key; a missing run token becomes the empty string, because NULLs are distinct."""
    return key.job_id, key.run_token or ""


Columns = Mapping[tuple[Kind, str], int]
