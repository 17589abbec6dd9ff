"""``SQLiteStore``: states in one SQLite file."""

from __future__ import annotations

import os
import sqlite3
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

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
    OutboxState,
    Page,
    StoredCell,
    WorkerRecord,
)
from celery_statemanager.stores import checked_timeout
from celery_statemanager.stores.base import Watch
from celery_statemanager.stores.capabilities import FullStore, JobCreator, read_ahead
from celery_statemanager.stores.sqlite import jobs, listing, outbox
from celery_statemanager.stores.sqlite.data_version import DataVersionPoller
from celery_statemanager.stores.sqlite.joined import TransactionJobs
from celery_statemanager.stores.sqlite.location import locate, require
from celery_statemanager.stores.sqlite.pool import Pool
from celery_statemanager.stores.sqlite.read_transaction import SQLiteReadTransaction
from celery_statemanager.stores.sqlite.transaction import SQLiteTransaction
from celery_statemanager.stores.sqlite.watch import SQLiteWatch
from celery_statemanager.stores.sqlite.write_cache import WriteCache
from celery_statemanager.stores.steps import Transaction
from celery_statemanager.stores.transactional import CellKey, Reply, TransactionalStore

_PUT_WORKER = "INSERT OR REPLACE INTO worker (worker_id, body, renewed_at, lease_until) VALUES (?, ?, ?, ?)"

_TRY_ACQUIRE = """
INSERT INTO worker (worker_id, body, renewed_at, lease_until) VALUES (?, ?, ?, ?)
ON CONFLICT (worker_id) DO UPDATE
SET body = excluded.body, renewed_at = excluded.renewed_at, lease_until = excluded.lease_until
WHERE body = excluded.body OR lease_until <= excluded.renewed_at
"""


class SQLiteStore(TransactionalStore, FullStore):
    """A store in a file, shared by any number of processes of one machine. It connects on first use.

    Args:
        path: the file. Unlike ``from_url``, the constructor does not check it.
        timeout: seconds to wait for other writers.
        clock: returns the time in seconds since the epoch.
        prefix: of the names of the tables, in a file of another application.
        patience: returns the seconds for which the current call waits for other writers, at most ``timeout``.
    """

    def __init__(
        self,
        path: str,
        *,
        timeout: float = 5.0,
        clock: Callable[[], float] = time.time,
        prefix: str = "",
        patience: Callable[[], float] | None = None,
    ) -> None:
        seconds = checked_timeout(timeout)
        self._clock = clock
        self._jobs = jobs.JobCache()
        self._write_cache = WriteCache(self._jobs)
        self._path = os.path.realpath(path)
        self._pool = Pool(self._path, seconds, prefix, patience)
        self._poller = DataVersionPoller(self._path, seconds, prefix)
        weakref.finalize(self, _close, self._pool, self._poller)

    @classmethod
    def from_url(cls, url: str, *, timeout: float, **options: Any) -> SQLiteStore:
        return cls(locate(url), timeout=timeout, **options)

    def require(self) -> None:
        require(self._path)

    def create_job(self, job: JobRecord) -> JobRecord:
        now = self.now()
        return self._pool.write(lambda db: outbox.create_job(db, job, now))

    def get_job(self, key: JobKey) -> JobRecord:
        return self._pool.read(lambda db: self._jobs.get(db, key).job)

    def create_tables(self) -> None:
        """Create or migrate the tables, which the first call of another method does otherwise."""
        self._pool.read(lambda _: None)

    def on_connection(self, connection: sqlite3.Connection) -> JobCreator:
        """Return what creates jobs in a transaction that a connection to this file, of the caller, has open."""
        return TransactionJobs(connection, self._path, self._pool.prefix, self.now)

    def list_jobs(
        self,
        cursor: str | None = None,
        limit: int = 100,
        *,
        due: bool = False,
        tombstoned: bool = False,
        idle_before: int | None = None,
    ) -> Page:
        return self._pool.read(
            lambda db: self._jobs.page(db, cursor, limit, due=due, tombstoned=tombstoned, idle_before=idle_before)
        )

    def newest_jobs(self, cursor: str | None = None, limit: int = 100) -> list[Listed]:
        before = None if cursor is None else parse_cursor(cursor)[0]
        return self._pool.read(lambda db: self._jobs.newest(db, before, limit))

    def list_runs(self, job_id: str, limit: int = 10) -> list[str | None]:
        return self._pool.read(lambda db: jobs.list_runs(db, job_id, limit))

    def delete_job(self, job: JobRecord, *, if_idle: bool = False, purge: int = 0) -> bool:
        def delete(db: sqlite3.Connection) -> bool:
            stored = self._jobs.read(db, job.ref)
            changed = (stored.job.revision, stored.job.last_activity) != (job.revision, job.last_activity)
            if if_idle and changed:
                return False
            jobs.discard(db, stored.id)
            if purge:
                jobs.purge_job(db, stored.id, purge)
            return True

        return self._pool.write(delete)

    def purge(self, limit: int = 1_000) -> int:
        return self._pool.write(lambda db: jobs.purge(db, limit))

    def transact(self, ref: JobRef, step: Callable[[Transaction], Reply], key: CellKey | None = None) -> Reply:
        if key is None:
            return self._pool.write(lambda db: step(SQLiteTransaction.read(db, self._jobs, ref, self.now())))
        cache = self._write_cache
        return self._pool.write(lambda db: cache.step(db, ref, key, self.now(), step), cache.committed)

    def get_cell(self, ref: JobRef, tag: str, task_index: int) -> Cell | None:
        return self._pool.read(lambda db: SQLiteReadTransaction(db, self._jobs.current(db, ref)).cell(tag, task_index))

    def lowest(self, ref: JobRef, scope: Scope) -> State:
        return self._pool.read(lambda db: SQLiteReadTransaction(db, self._jobs.current(db, ref)).lowest(scope))

    def column_summaries(
        self, ref: JobRef, tag: str | None = None, *, indexes: bool = False
    ) -> tuple[JobRecord, list[Column]]:
        def read(db: sqlite3.Connection) -> tuple[JobRecord, list[Column]]:
            transaction = SQLiteReadTransaction(db, self._jobs.read(db, ref))
            return transaction.job, transaction.column_summaries(tag, indexes=indexes)

        return self._pool.read(read)

    def list_states(self, ref: JobRef, scope: Scope) -> Iterator[State]:
        return listing.list_states(self._pool, self._jobs, ref, scope)

    def watch(self, ref: JobRef, scope: Scope, since: str | None = None) -> Watch:
        return SQLiteWatch(self._pool, self._poller, self._jobs, ref, scope, since)

    def adopt_job(self, ref: JobRef, incarnation: str) -> JobRecord:
        def adopt(db: sqlite3.Connection) -> JobRecord:
            jobs.adopt(db, ref, incarnation)
            return self._jobs.get(db, ref.key).job

        return self._pool.write(adopt)

    def outdated_cells(self, ref: JobRef, below: int) -> Iterator[StoredCell]:
        return listing.list_outdated(self._pool, self._jobs, ref, below)

    def add_block(self, ref: JobRef, first: int, data: bytes, lease: float) -> None:
        until = self.now() + round(lease * 1_000_000)
        self._pool.write(lambda db: outbox.add_block(db, ref, first, data, until))

    def get_block(self, ref: JobRef, row: int) -> tuple[int, bytes] | None:
        return self._pool.read(lambda db: outbox.get_block(db, ref.incarnation, row))

    def get_value(self, ref: JobRef, row: int) -> str | None:
        return self._pool.read(lambda db: outbox.get_value(db, ref, row))

    def list_values(self, ref: JobRef, rows: IndexSet) -> Iterator[tuple[int, str]]:
        return read_ahead(outbox.pages_of_values(self._pool, self._jobs, ref, rows))

    def drop_draft(self, ref: JobRef) -> None:
        self._pool.write(lambda db: outbox.drop_draft(db, ref.incarnation))

    def drop_expired_drafts(self) -> int:
        now = self.now()
        return self._pool.write(lambda db: outbox.drop_expired(db, now))

    def get_outbox(self, ref: JobRef) -> OutboxState:
        return self._pool.read(lambda db: outbox.read_state(db, self._jobs.current(db, ref).id))

    def put_worker(self, worker_id: str, body: str, lease: float) -> None:
        now = self.now()
        row = (worker_id, body, now, now + round(lease * 1_000_000))
        self._pool.write(lambda db: db.execute(_PUT_WORKER, row))

    def try_acquire(self, name: str, holder: str, seconds: float) -> bool:
        now = self.now()
        row = (name, holder, now, now + round(seconds * 1_000_000))
        return self._pool.write(lambda db: db.execute(_TRY_ACQUIRE, row).rowcount == 1)

    def get_worker(self, worker_id: str) -> WorkerRecord | None:
        row = self._pool.read(lambda db: db.execute(listing.WORKER, (worker_id,)).fetchone())
        return None if row is None else WorkerRecord(*row)

    def list_workers(self) -> Iterator[WorkerRecord]:
        return listing.list_workers(self._pool)

    def drop_worker(self, worker_id: str) -> None:
        self._pool.write(lambda db: db.execute("DELETE FROM worker WHERE worker_id = ?", (worker_id,)))

    def list_open_attempts(self) -> Iterator[OpenAttempt]:
        return listing.list_open_attempts(self._pool)

    def now(self) -> int:
        return int(self._clock() * 1_000_000)

    def close(self) -> None:
        _close(self._pool, self._poller)

    def __repr__(self) -> str:
        return f"<SQLiteStore {self._path}>"


def _close(pool: Pool, poller: DataVersionPoller) -> None:
    poller.close()
    pool.close()
