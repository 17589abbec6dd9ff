"""The store in the memory of one process: for tests, for eager runs, and as the simplest model of the contract."""

from __future__ import annotations

import itertools
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from celery_statemanager import aggregate
from celery_statemanager.errors import JobExists, JobNotFound
from celery_statemanager.indexset import IndexSet
from celery_statemanager.limits import parse_cursor
from celery_statemanager.models import Scope, State
from celery_statemanager.records import (
    Cell,
    Column,
    JobKey,
    JobRecord,
    JobRef,
    Listed,
    OpenAttempt,
    Page,
    StoredCell,
    WorkerRecord,
)
from celery_statemanager.stores.base import Watch
from celery_statemanager.stores.capabilities import FullStore, draft_expired
from celery_statemanager.stores.forking import fork_aware
from celery_statemanager.stores.memory_grid import MemoryJob, MemoryWatch
from celery_statemanager.stores.steps import Transaction
from celery_statemanager.stores.transactional import CellKey, Reply, TransactionalStore

_named: dict[str, MemoryStore] = {}
_named_lock = threading.Lock()


class MemoryStore(TransactionalStore, FullStore):
    """A store that exists as long as its process. A forked child continues with a copy.

    Args:
        clock: returns the time in seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._jobs: dict[JobKey, MemoryJob] = {}
        self._numbers: dict[JobKey, int] = {}
        self._order: list[tuple[int, JobKey]] = []
        """The jobs by their number, which is that of their creation."""
        self._next_number = itertools.count(1)
        self._workers: dict[str, WorkerRecord] = {}
        self._blocks: dict[str, dict[int, bytes]] = {}
        self._drafts: dict[str, int] = {}
        """The incarnations of jobs that were not created yet, with the ends of their leases."""
        fork_aware(self)

    @classmethod
    def from_url(cls, url: str, *, timeout: float, **options: Any) -> MemoryStore:
        name = url.partition("://")[2]
        if not name:
            return cls(**options)
        with _named_lock:
            if name not in _named:
                _named[name] = cls(**options)
            return _named[name]

    def __repr__(self) -> str:
        return "<MemoryStore>"

    def create_job(self, job: JobRecord) -> JobRecord:
        with self._lock:
            if job.key in self._jobs:
                raise JobExists(*job.key)
            if job.flow is not None and self._drafts.pop(job.incarnation, None) is None:
                raise draft_expired(job)
            now = self.now()
            stored = replace(job, latches=dict(job.latches), created_at=now, last_activity=now, revision=1)
            self._jobs[job.key] = MemoryJob(stored, now)
            self._numbers[job.key] = next(self._next_number)
            self._order.append((self._numbers[job.key], job.key))
            return self._jobs[job.key].snapshot()

    def get_job(self, key: JobKey) -> JobRecord:
        with self._lock:
            return self._job(key).snapshot()

    def list_jobs(
        self,
        cursor: str | None = None,
        limit: int = 100,
        *,
        due: bool = False,
        tombstoned: bool = False,
        idle_before: int | None = None,
    ) -> Page:
        with self._lock:
            start = 0 if cursor is None else bisect_left(self._order, (int(cursor) + 1,))
            wanted = (
                (number, self._jobs[key])
                for number, key in itertools.islice(self._order, start, None)
                if (not due or self._jobs[key].record.due)
                if not tombstoned or self._jobs[key].record.tombstoned_at is not None
                if idle_before is None or self._jobs[key].last_activity < idle_before
            )
            listed = list(itertools.islice(wanted, limit + 1))
            page = [job.snapshot() for _, job in listed[:limit]]
        return Page(page, str(listed[limit - 1][0]) if len(listed) > limit else None)

    def newest_jobs(self, cursor: str | None = None, limit: int = 100) -> list[Listed]:
        before = None if cursor is None else (parse_cursor(cursor)[0],)
        with self._lock:
            end = len(self._order) if before is None else bisect_left(self._order, before)
            newest = self._order[max(end - limit, 0) : end]
            return [Listed(self._jobs[key].snapshot(), str(number)) for number, key in reversed(newest)]

    def list_runs(self, job_id: str, limit: int = 10) -> list[str | None]:
        with self._lock:
            return [key.run_token for key in self._jobs if key.job_id == job_id][:limit]

    def delete_job(self, job: JobRecord, *, if_idle: bool = False, purge: int = 0) -> bool:
        with self._lock:
            stored = self._incarnation(job.ref)
            changed = stored.record.revision != job.revision or stored.last_activity != job.last_activity
            if if_idle and changed:
                return False
            del self._jobs[job.key]
            del self._order[bisect_left(self._order, (self._numbers.pop(job.key),))]
            self._blocks.pop(job.incarnation, None)
            stored.delete()
            return True

    def purge(self, limit: int = 1_000) -> int:
        return 0

    def transact(self, ref: JobRef, step: Callable[[Transaction], Reply], key: CellKey | None = None) -> Reply:
        with self._lock:
            job = self._incarnation(ref)
            job.now = max(self.now(), job.now)
            return step(job)

    def get_cell(self, ref: JobRef, tag: str, task_index: int) -> Cell | None:
        with self._lock:
            return self._incarnation(ref).cell(tag, task_index)

    def lowest(self, ref: JobRef, scope: Scope) -> State:
        with self._lock:
            return self._incarnation(ref).lowest(scope)

    def column_summaries(
        self, ref: JobRef, tag: str | None = None, *, indexes: bool = False
    ) -> tuple[JobRecord, list[Column]]:
        with self._lock:
            job = self._incarnation(ref)
            tags = job.expected_tags() if tag is None else [tag]
            return job.snapshot(), [job.column_summaries(each, indexes=indexes) for each in tags]

    def list_states(self, ref: JobRef, scope: Scope) -> Iterator[State]:
        with self._lock:
            job = self._incarnation(ref)
            record, cells = job.record, list(job.written(scope))
        cells.sort(key=lambda each: (each[2].timestamp, *each[:2]))  # after releasing the lock that writers need
        return (aggregate.visible_state(record, *each) for each in cells)

    def watch(self, ref: JobRef, scope: Scope, since: str | None = None) -> Watch:
        with self._lock:
            job = self._incarnation(ref)
            watch = MemoryWatch(self._lock, job, scope, since)
            job.add_watch(watch)
            return watch

    def adopt_job(self, ref: JobRef, incarnation: str) -> JobRecord:
        with self._lock:
            job = self._job(ref.key)
            if job.record.incarnation == ref.incarnation:
                job = self._jobs[ref.key] = job.adopted(incarnation)
            return job.snapshot()

    def outdated_cells(self, ref: JobRef, below: int) -> Iterator[StoredCell]:
        with self._lock:
            return iter([each for each in self._incarnation(ref).cells() if each.cell.schema_version < below])

    def add_block(self, ref: JobRef, first: int, data: bytes, lease: float) -> None:
        with self._lock:
            if first and ref.incarnation not in self._drafts:
                raise draft_expired(ref.key)
            self._drafts[ref.incarnation] = self.now() + round(lease * 1_000_000)
            self._blocks.setdefault(ref.incarnation, {})[first] = bytes(data)

    def get_block(self, ref: JobRef, row: int) -> tuple[int, bytes] | None:
        with self._lock:
            blocks = self._blocks.get(ref.incarnation, {})
            first = max((each for each in blocks if each <= row), default=None)
            return None if first is None else (first, blocks[first])

    def get_value(self, ref: JobRef, row: int) -> str | None:
        with self._lock:
            job = self._jobs.get(ref.key)
            return job.values.get(row) if job is not None and job.record.incarnation == ref.incarnation else None

    def list_values(self, ref: JobRef, rows: IndexSet) -> Iterator[tuple[int, str]]:
        with self._lock:
            values = self._incarnation(ref).values
            return iter([(row, values[row]) for row in rows if row in values])

    def drop_draft(self, ref: JobRef) -> None:
        with self._lock:
            self._drop_draft(ref.incarnation)

    def drop_expired_drafts(self) -> int:
        with self._lock:
            now = self.now()
            expired = [incarnation for incarnation, until in self._drafts.items() if until <= now]
            for incarnation in expired:
                self._drop_draft(incarnation)
            return len(expired)

    def put_worker(self, worker_id: str, body: str, lease: float) -> None:
        with self._lock:
            now = self.now()
            self._workers[worker_id] = WorkerRecord(worker_id, body, now, now + round(lease * 1_000_000))

    def try_acquire(self, name: str, holder: str, seconds: float) -> bool:
        with self._lock:
            lock = self._workers.get(name)
            if lock is not None and lock.body != holder and lock.lease_until > self.now():
                return False
            self.put_worker(name, holder, seconds)
            return True

    def get_worker(self, worker_id: str) -> WorkerRecord | None:
        with self._lock:
            worker = self._workers.get(worker_id)
            return None if worker is None else replace(worker)

    def list_workers(self) -> Iterator[WorkerRecord]:
        with self._lock:
            return iter([replace(worker) for worker in self._workers.values()])

    def drop_worker(self, worker_id: str) -> None:
        with self._lock:
            self._workers.pop(worker_id, None)

    def list_open_attempts(self) -> Iterator[OpenAttempt]:
        with self._lock:
            return iter([attempt for job in self._jobs.values() for attempt in job.owned.values()])

    def before_fork(self) -> None:
        self._lock.acquire()

    def after_fork(self) -> None:
        self._lock.release()

    def now(self) -> int:
        return int(self._clock() * 1_000_000)

    def _drop_draft(self, incarnation: str) -> None:
        if self._drafts.pop(incarnation, None) is not None:
            self._blocks.pop(incarnation, None)

    def _job(self, key: JobKey) -> MemoryJob:
        job = self._jobs.get(key)
        if job is None:
            raise JobNotFound(*key)
        return job

    def _incarnation(self, ref: JobRef) -> MemoryJob:
        job = self._jobs.get(ref.key)
        if job is None or job.record.incarnation != ref.incarnation:
            raise JobNotFound(*ref.key)
        return job
