"""``PostgresStore``: states in the tables of one schema of a PostgreSQL database."""

# ruff: noqa: S608 - only names of our own columns and tables are interpolated; every value is bound

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import psycopg

from celery_statemanager.indexset import IndexSet
from celery_statemanager.limits import parse_cursor
from celery_statemanager.models import Scope, State
from celery_statemanager.records import (
    Begin,
    BeginReply,
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
    Write,
    WriteReply,
)
from celery_statemanager.stores import steps
from celery_statemanager.stores.base import Watch
from celery_statemanager.stores.capabilities import FullStore, JobCreator, read_ahead
from celery_statemanager.stores.postgres import jobs, listing, outbox, setup
from celery_statemanager.stores.postgres.address import PostgresAddress, parse
from celery_statemanager.stores.postgres.connection import Connection
from celery_statemanager.stores.postgres.jobs import CachedJob
from celery_statemanager.stores.postgres.joined import TransactionJobs
from celery_statemanager.stores.postgres.listener import Listener
from celery_statemanager.stores.postgres.names import Names
from celery_statemanager.stores.postgres.outbox import Statement
from celery_statemanager.stores.postgres.pool import Pool
from celery_statemanager.stores.postgres.put import CLOCK
from celery_statemanager.stores.postgres.reads import Reader
from celery_statemanager.stores.postgres.watch import PostgresWatch
from celery_statemanager.stores.postgres.writing import Writer
from celery_statemanager.stores.steps import Transaction
from celery_statemanager.stores.transactional import CellKey, Reply, TransactionalStore

_PUT_WORKER = f"""
INSERT INTO {{worker}} (worker_id, body, renewed_at, lease_until)
SELECT %s, %s, clock.now, clock.now + %s FROM (SELECT {CLOCK} AS now) clock
ON CONFLICT (worker_id) DO UPDATE
SET body = excluded.body, renewed_at = excluded.renewed_at, lease_until = excluded.lease_until
"""
_SETTINGS = """
SELECT name FROM pg_settings WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND setting = 'off'
ORDER BY name
"""
_TRY_ACQUIRE = f"{_PUT_WORKER} WHERE {{worker}}.body = excluded.body OR {{worker}}.lease_until <= excluded.renewed_at"


class PostgresStore(TransactionalStore, FullStore):
    """A store in a PostgreSQL database, shared by any number of machines. It connects on first use.

    Args:
        address: the server, the database and the names of the tables.
    """

    def __init__(self, address: PostgresAddress) -> None:
        self._address = address
        self._names = Names(address.schema, address.prefix)
        self._pool = Pool(address, self._names)
        self._jobs = jobs.JobCache(self._names)
        self._reader = Reader(self._names, self._jobs)
        self._writer = Writer(self._pool, self._jobs)
        self._listener = Listener(self._pool)
        weakref.finalize(self, _close, self._pool, self._listener)

    @classmethod
    def from_url(cls, url: str, *, timeout: float, **options: Any) -> PostgresStore:
        return cls(parse(url, timeout, options))

    def server_warnings(self) -> list[str]:
        rows = self._pool.call(lambda db: db.execute(_SETTINGS).fetchall())
        return [
            f"{self._address.shown} may lose states when it crashes ({name} is off): turn it on" for (name,) in rows
        ]

    def create_tables(self) -> None:
        try:
            setup.migrate(self._address, self._names, time.monotonic() + self._address.timeout)
        except psycopg.Error as error:
            raise self._pool.translate(error) from error

    def on_connection(self, connection: psycopg.Connection[Any]) -> JobCreator:
        """Return an object that creates jobs in the open transaction of the caller's connection to this database."""
        return TransactionJobs(connection, self._pool)

    def create_job(self, job: JobRecord) -> JobRecord:
        def create(db: Connection) -> JobRecord:
            db.execute("BEGIN")
            stored = jobs.insert(db, self._names, job)
            outbox.accept(db, self._names, stored)
            db.execute("COMMIT")
            return stored

        return self._pool.call(create)

    def get_job(self, key: JobKey) -> JobRecord:
        return self._pool.call(lambda db: self._jobs.get(db, key).job)

    def list_jobs(
        self,
        cursor: str | None = None,
        limit: int = 100,
        *,
        due: bool = False,
        tombstoned: bool = False,
        idle_before: int | None = None,
    ) -> Page:
        return self._pool.call(
            lambda db: self._jobs.page(db, cursor, limit, due=due, tombstoned=tombstoned, idle_before=idle_before)
        )

    def newest_jobs(self, cursor: str | None = None, limit: int = 100) -> list[Listed]:
        before = None if cursor is None else parse_cursor(cursor)[0]
        return self._pool.call(lambda db: self._jobs.newest(db, before, limit))

    def list_runs(self, job_id: str, limit: int = 10) -> list[str | None]:
        return self._pool.call(lambda db: jobs.list_runs(db, self._names, job_id, limit))

    def delete_job(self, job: JobRecord, *, if_idle: bool = False, purge: int = 0) -> bool:
        deleted: list[int] = []

        def delete(cached: CachedJob) -> list[Statement] | None:
            stored = cached.job
            changed = (stored.revision, stored.last_activity) != (job.revision, job.last_activity)
            if if_idle and changed:
                return None
            deleted.append(cached.id)
            return jobs.discard(self._names, cached.id)

        found = self._writer.locked_statements(job.ref, delete)
        if found and purge:
            self._pool.call(lambda db: jobs.purge_job(db, self._names, deleted[-1], purge))
        return found

    def purge(self, limit: int = 1_000) -> int:
        def remove(db: Connection) -> int:
            db.execute("BEGIN")
            removed = jobs.purge(db, self._names, limit)
            db.execute("COMMIT")
            return removed

        return self._pool.call(remove)

    def transact(self, ref: JobRef, step: Callable[[Transaction], Reply], key: CellKey | None = None) -> Reply:
        return self._writer.run_locked(ref, step, key)

    def write(self, ref: JobRef, write: Write) -> WriteReply:
        return self._writer.run(ref, lambda tx: steps.write(tx, write), (write.tag, write.task_index))

    def begin(self, ref: JobRef, begin: Begin) -> BeginReply:
        key = (begin.tag, begin.task_index)
        return self._writer.run(ref, lambda tx: steps.begin(tx, begin, tx.deadline_time), key)

    def get_cell(self, ref: JobRef, tag: str, task_index: int) -> Cell | None:
        return self._pool.call(lambda db: self._reader.cell(db, ref, tag, task_index))

    def lowest(self, ref: JobRef, scope: Scope) -> State:
        return self._pool.call(lambda db: self._reader.lowest(db, ref, scope))

    def column_summaries(
        self, ref: JobRef, tag: str | None = None, *, indexes: bool = False
    ) -> tuple[JobRecord, list[Column]]:
        return self._pool.call(lambda db: self._reader.column_summaries(db, ref, tag, indexes=indexes))

    def list_states(self, ref: JobRef, scope: Scope) -> Iterator[State]:
        return listing.list_states(self._pool, self._jobs, ref, scope)

    def watch(self, ref: JobRef, scope: Scope, since: str | None = None) -> Watch:
        return PostgresWatch(self._pool, self._listener, self._jobs, ref, scope, since)

    def adopt_job(self, ref: JobRef, incarnation: str) -> JobRecord:
        def adopt(db: Connection) -> JobRecord:
            jobs.adopt(db, self._names, ref, incarnation)
            return self._jobs.get(db, ref.key).job

        return self._pool.call(adopt)

    def outdated_cells(self, ref: JobRef, below: int) -> Iterator[StoredCell]:
        return listing.list_outdated(self._pool, self._jobs, ref, below)

    def add_block(self, ref: JobRef, first: int, data: bytes, lease: float) -> None:
        def add(db: Connection) -> None:
            db.execute("BEGIN")
            outbox.add_block(db, self._names, ref, first, data, lease)
            db.execute("COMMIT")

        self._pool.call(add)

    def get_block(self, ref: JobRef, row: int) -> tuple[int, bytes] | None:
        return self._pool.call(lambda db: outbox.get_block(db, self._names, ref.incarnation, row))

    def get_value(self, ref: JobRef, row: int) -> str | None:
        return self._pool.call(lambda db: outbox.get_value(db, self._names, ref, row))

    def list_values(self, ref: JobRef, rows: IndexSet) -> Iterator[tuple[int, str]]:
        return read_ahead(outbox.pages_of_values(self._pool, self._jobs, ref, rows))

    def drop_draft(self, ref: JobRef) -> None:
        def drop(db: Connection) -> None:
            db.execute("BEGIN")
            outbox.drop_draft(db, self._names, ref.incarnation)
            db.execute("COMMIT")

        self._pool.call(drop)

    def drop_expired_drafts(self) -> int:
        def drop(db: Connection) -> int:
            db.execute("BEGIN")
            dropped = outbox.drop_expired(db, self._names)
            db.execute("COMMIT")
            return dropped

        return self._pool.call(drop)

    def get_outbox(self, ref: JobRef) -> OutboxState:
        def read(db: Connection) -> OutboxState:
            number = self._jobs.read(db, ref).id
            begin, queries = (
                ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", ()),
                outbox.state_queries(self._names, number),
            )
            return outbox.state_of(*db.run_script(begin, *queries, ("COMMIT", ()))[1:-1])

        return self._pool.call(read)

    def put_worker(self, worker_id: str, body: str, lease: float) -> None:
        row = (worker_id, body, round(lease * 1_000_000))
        self._pool.call(lambda db: db.execute(self._names.fill(_PUT_WORKER), row))

    def try_acquire(self, name: str, holder: str, seconds: float) -> bool:
        row = (name, holder, round(seconds * 1_000_000))
        return self._pool.call(lambda db: db.execute(self._names.fill(_TRY_ACQUIRE), row).rowcount == 1)

    def get_worker(self, worker_id: str) -> WorkerRecord | None:
        row = self._pool.call(lambda db: db.execute(self._names.fill(listing.WORKER), (worker_id,)).fetchone())
        return None if row is None else WorkerRecord(*row)

    def list_workers(self) -> Iterator[WorkerRecord]:
        return listing.list_workers(self._pool)

    def drop_worker(self, worker_id: str) -> None:
        text = self._names.fill("DELETE FROM {worker} WHERE worker_id = %s")
        self._pool.call(lambda db: db.execute(text, (worker_id,)))

    def list_open_attempts(self) -> Iterator[OpenAttempt]:
        return listing.list_open_attempts(self._pool)

    def now(self) -> int:
        row = self._pool.call(lambda db: db.execute(f"SELECT {CLOCK}").fetchone())
        assert row is not None
        return int(row[0])

    def close(self) -> None:
        _close(self._pool, self._listener)

    def __repr__(self) -> str:
        return f"<PostgresStore {self._address.shown}>"


def _close(pool: Pool, listener: Listener) -> None:
    listener.close()
    pool.close()
