"""Steps of one job: computed from cached values and stored in one round trip, or run under the job's lock.

A write takes one call of the server's function if this process wrote the cell last, or if the cell was never written.
Any other step, and a write whose cached values are out of date, locks the job and reads it.
"""

# ruff: noqa: S608 - only names of our own columns and tables are interpolated; every value is bound

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from celery_statemanager.aggregate import expected_rows
from celery_statemanager.errors import JobNotFound, StateManagerError
from celery_statemanager.records import Cell, JobRecord, JobRef, OutboxState, Tally
from celery_statemanager.stores.kinds import COUNTED, Kind, kind_of
from celery_statemanager.stores.postgres import jobs, outbox
from celery_statemanager.stores.postgres.cells import SELECTED, TALLY, cell_of
from celery_statemanager.stores.postgres.connection import Connection
from celery_statemanager.stores.postgres.jobs import CachedJob, JobCache
from celery_statemanager.stores.postgres.names import SHARDS
from celery_statemanager.stores.postgres.outbox import Statement
from celery_statemanager.stores.postgres.pool import Pool
from celery_statemanager.stores.postgres.put import (
    CALL,
    CHANGED,
    CLOCK,
    DECIDES,
    EXCLUSIVE,
    FEW_LEFT,
    HELD,
    LOCK_KEY,
    NOW,
    SHARED,
)
from celery_statemanager.stores.postgres.transaction import PostgresTransaction, StaleCache
from celery_statemanager.stores.transactional import CellKey

MAX_CACHED_CELLS = 1_000
"""Far more cells than a process works on at once. Each may take 64 KiB; one that is evicted costs round trips."""

Reply = TypeVar("Reply")
Step = Callable[[PostgresTransaction], Reply]

_LOCK = f"SELECT set_config('lock_timeout', %s, true), pg_advisory_xact_lock({LOCK_KEY} %s)"
_JOB = f"SELECT {CLOCK}, {jobs.COLUMNS} FROM {{job}} j WHERE j.id = %s AND j.incarnation = %s"
_TAGS = "SELECT kind, name, id FROM {tag} WHERE job = %s"
_CELL = f"""
SELECT {SELECTED} FROM {{tag}} t JOIN {{cell}} c ON c.job = t.job AND c.tag = t.id
WHERE t.job = %s AND t.kind = %s AND t.name = %s AND c.task_index = %s
"""
_TOTAL = f"""
SELECT {", ".join(f"coalesce(sum(y.{name}), 0)::bigint" for name in TALLY)}
FROM {{tag}} t JOIN {{tally}} y ON y.job = t.job AND y.tag = t.id WHERE t.job = %s AND t.kind = {Kind.EXPECTED:d}
"""
_NEW_COLUMN = """
INSERT INTO {tag} (job, id, kind, name) SELECT %s, coalesce(max(id), 0) + 1, %s, %s FROM {tag} WHERE job = %s
RETURNING id
"""
_NEW_GAP = "INSERT INTO {gap} (job, tag, shard, low, high) VALUES (%s, %s, %s, %s, %s)"
NOTIFY = """
SELECT pg_notify('{channel}' || '{job}'::regclass::oid, %s) WHERE EXISTS (SELECT FROM {watcher} WHERE job = %s)
"""


class Writer:
    """Runs the steps of a store."""

    def __init__(self, pool: Pool, cache: JobCache) -> None:
        self._pool = pool
        self._names = pool.names
        self._jobs = cache
        self._cells: dict[tuple[JobRef, CellKey], Cell] = {}
        self._lock_timeout = f"{max(1, round(pool.address.timeout * 1_000))}ms"

    def run(self, ref: JobRef, step: Step[Reply], key: CellKey, *, optimistic: bool = True) -> Reply:
        """Run a step that reads this cell first and, if ``optimistic``, changes no other. Raises: what it raises."""
        if optimistic:
            tried = self._try_cached(ref, key, step)
            if tried is not None:
                return tried[0]
        return self.run_locked(ref, step, key)

    def run_locked(self, ref: JobRef, step: Step[Reply], key: CellKey | None = None) -> Reply:
        """Run a step under the exclusive lock of the job. Raises: JobNotFound; what the step raises."""
        reply, transaction = self._pool.call(lambda db: self._locked(db, ref, step, key))
        self._remember(ref, transaction)
        return reply

    def locked_statements(self, ref: JobRef, statements: Callable[[CachedJob], list[Statement] | None]) -> bool:
        """Run statements under the exclusive lock of the job, unless the function returns None for the job."""

        def run(db: Connection) -> bool:
            cached = self._lock(db, ref, None)[0]
            found = statements(cached)
            if found is None:
                return False
            db.run_script(*found, self._notify(cached.id), ("COMMIT", ()))
            return True

        return self._pool.call(run)

    def _try_cached(self, ref: JobRef, key: CellKey, step: Step[Reply]) -> tuple[Reply] | None:
        cached = self._jobs.peek(ref)
        if cached is None or cached.job.cancelled or (kind_of(cached.job, *key), key[0]) not in cached.columns:
            return None
        old = self._cells.pop((ref, key), None)
        transaction = PostgresTransaction(cached, NOW, {key: old})
        try:
            reply = step(transaction)
        except (StaleCache, StateManagerError):
            return None
        if len(transaction.puts) != 1:
            return None
        put = transaction.puts[0]
        lock = EXCLUSIVE if cached.few_left[0] and transaction.expected_to_end() else SHARED
        now = self._pool.call(partial(self._call, transaction, lock))
        if now == FEW_LEFT:
            cached.few_left[0] = True
            now = self._pool.call(partial(self._call, transaction, EXCLUSIVE))
        if now in (CHANGED, DECIDES):
            return None
        put.new.timestamp = now
        if put.new.began_at == NOW:
            put.new.began_at = now
        self._remember(ref, transaction)
        return (reply,)

    def _call(self, transaction: PostgresTransaction, lock: int, db: Connection) -> int:
        arguments = transaction.put_arguments(transaction.puts[0], lock, self._lock_timeout)
        row = db.execute(self._names.fill(CALL), arguments).fetchone()
        return row[0] if row else CHANGED

    def _locked(
        self, db: Connection, ref: JobRef, step: Step[Reply], key: CellKey | None
    ) -> tuple[Reply, PostgresTransaction]:
        cached, now, cells, total = self._lock(db, ref, key)
        transaction = PostgresTransaction(
            cached,
            now,
            cells,
            total=total,
            read_cell=partial(self._read_cell, db, cached),
            read_outbox=partial(self._read_outbox, db, cached.id),
        )
        reply = step(transaction)
        if transaction.changed:
            self._store(db, transaction)
        return reply, transaction

    def _lock(
        self, db: Connection, ref: JobRef, key: CellKey | None
    ) -> tuple[CachedJob, int, dict[CellKey, Cell | None], Tally]:
        """Begin a transaction, lock a job, and read it. Raises: JobNotFound."""
        number = self._jobs.get_cached(db, ref).id
        found = self._read_locked(db, ref, number, key)
        if not found[2]:  # deleted, or restored under another number
            db.execute("ROLLBACK")
            number = self._jobs.read(db, ref).id
            found = self._read_locked(db, ref, number, key)
        if not found[2]:
            raise JobNotFound(*ref.key)
        ((clock, *row),) = found[2]
        cached = self._jobs.decode(db, row)
        cached.columns.update({(Kind(kind), name): column for kind, name, column in found[3]})
        cells: dict[CellKey, Cell | None] = {}
        if key is not None:
            cells[key] = cell_of(found[5][0]) if found[5] else None
        now = max(clock, cached.latest_time, cached.job.last_activity + 1)
        return cached, now, cells, Tally(*found[4][0])

    def _read_locked(
        self, db: Connection, ref: JobRef, number: int, key: CellKey | None
    ) -> list[list[tuple[Any, ...]]]:
        fill = self._names.fill
        statements: list[Statement] = [
            ("BEGIN", ()),
            (fill(_LOCK), (self._lock_timeout, number)),
            (fill(_JOB), (number, ref.incarnation)),
            (fill(_TAGS), (number,)),
            (fill(_TOTAL), (number,)),
        ]
        if key is not None:
            job = self._jobs.get_cached(db, ref).job
            statements.append((fill(_CELL), (number, int(kind_of(job, *key)), *key)))
        return db.run_script(*statements)

    def _read_cell(self, db: Connection, cached: CachedJob, tag: str, row: int) -> Cell | None:
        kind = kind_of(cached.job, tag, row)
        found = db.execute(self._names.fill(_CELL), (cached.id, int(kind), tag, row)).fetchone()
        return cell_of(found) if found else None

    def _read_outbox(self, db: Connection, number: int) -> OutboxState:
        return outbox.state_of(*db.run_script(*outbox.state_queries(self._names, number)))

    def _store(self, db: Connection, tx: PostgresTransaction) -> None:
        """Store the changes of a step and commit."""
        fill, number = self._names.fill, tx.cached.id
        for put in (*tx.puts, *tx.rewrites):
            kind = kind_of(tx.job, put.tag, put.task_index)
            if (kind, put.tag) not in tx.cached.columns:
                tx.cached.columns[kind, put.tag] = self._create_column(db, number, tx.job, kind, put.tag)
        statements: list[Statement] = [(fill(CALL), tx.put_arguments(put, HELD, self._lock_timeout)) for put in tx.puts]
        for put in tx.rewrites:
            statements += [(fill(text), values) for text, values in tx.rewrite_statements(put)]
        if tx.new_outbox is not None and tx.old_outbox is not None:
            statements += outbox.changes(self._names, number, tx.old_outbox, tx.new_outbox)
        if tx.job is not tx.cached.job:
            statements.append((fill(jobs.UPDATE), jobs.changed_values(number, tx.job)))
            statements.append(self._notify(number))
        replies = db.run_script(*statements, ("COMMIT", ()))
        if any(reply[0][0] == CHANGED for reply in replies[: len(tx.puts)]):
            raise AssertionError("the function refused a change of a locked job")

    def _create_column(self, db: Connection, number: int, job: JobRecord, kind: Kind, tag: str) -> int:
        fill = self._names.fill
        row = db.execute(fill(_NEW_COLUMN), (number, int(kind), tag, number)).fetchone()
        assert row is not None
        column: int = row[0]
        if kind in COUNTED:
            gaps = [(number, column, *gap) for gap in sharded(expected_rows(job, tag).ranges)]
            db.cursor().executemany(fill(_NEW_GAP), gaps)
        return column

    def _notify(self, number: int) -> Statement:
        return self._names.fill(NOTIFY), (str(number), number)

    def _remember(self, ref: JobRef, tx: PostgresTransaction) -> None:
        """Put what was committed into the caches."""
        if tx.job is not tx.cached.job:
            latest = jobs.latest_time(tx.job)
            self._jobs.remember(ref, CachedJob(tx.cached.id, tx.job, latest, tx.cached.columns, tx.cached.few_left))
        for put in (*tx.puts, *tx.rewrites):
            key = (ref, (put.tag, put.task_index))
            self._cells.pop(key, None)
            if not put.new.final:
                self._cells[key] = put.new
                if len(self._cells) > MAX_CACHED_CELLS:
                    self._cells.pop(next(iter(self._cells)), None)


def sharded(ranges: object) -> list[tuple[int, int, int]]:
    """Divide inclusive ranges of rows among the shards: each as its shard, and the quotients of its ends."""
    found: dict[int, list[tuple[int, int]]] = {}
    for low, high in ranges:  # type: ignore[attr-defined]
        for shard in range(SHARDS):
            first, last = -((shard - low) // SHARDS), (high - shard) // SHARDS
            if first > last:
                continue
            merged = found.setdefault(shard, [])
            if merged and merged[-1][1] + 1 >= first:
                merged[-1] = (merged[-1][0], last)
            else:
                merged.append((first, last))
    return [(shard, low, high) for shard, each in found.items() for low, high in each]
