"""A cache of the cells that this process wrote last: writing one of them again needs no read."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import TypeVar

from celery_statemanager.errors import StateManagerError
from celery_statemanager.records import JobRef
from celery_statemanager.stores.sqlite.jobs import JobCache
from celery_statemanager.stores.sqlite.transaction import Slot, SQLiteTransaction, StaleCache
from celery_statemanager.stores.transactional import CellKey

MAX_CACHED_CELLS = 128

Reply = TypeVar("Reply")


class WriteCache:
    """The cells that this process wrote last, used by the thread that holds the write lock.

    A step first runs on the cached cell. Its write succeeds only if the cached cell and job are current; otherwise,
    and for every other outcome (a refusal, a repetition), the step runs again on the cell that it reads. Entries may
    therefore be out of date, because other processes write too. Only committed cells are cached: an uncommitted one
    may name a column whose number another process then uses.
    """

    def __init__(self, jobs: JobCache) -> None:
        self._jobs = jobs
        self._cells: dict[tuple[int, CellKey], tuple[Slot, int]] = {}
        self._last: tuple[CellKey, SQLiteTransaction] | None = None

    def step(
        self,
        db: sqlite3.Connection,
        ref: JobRef,
        key: CellKey,
        clock: int,
        step: Callable[[SQLiteTransaction], Reply],
    ) -> Reply:
        """Run a step that reads this cell first. Raises: JobNotFound; what the step raises."""
        self._last = None
        transaction = self._cached(db, ref, key, clock)
        reply = None if transaction is None else _try_step(transaction, step)
        if transaction is None or reply is None:
            transaction = SQLiteTransaction.read(db, self._jobs, ref, clock, key)
            reply = step(transaction)
        self._last = key, transaction
        return reply

    def committed(self) -> None:
        """Cache the cell of the last step, which is committed, unless the cell is final."""
        if self._last is None:
            return
        (key, transaction), self._last = self._last, None
        slot = transaction.slot(key)
        if slot.cell is not None and not slot.cell.final:
            self._cells[transaction.id, key] = slot, transaction.touched
            if len(self._cells) > MAX_CACHED_CELLS:
                del self._cells[next(iter(self._cells))]

    def _cached(self, db: sqlite3.Connection, ref: JobRef, key: CellKey, clock: int) -> SQLiteTransaction | None:
        cached = self._jobs.peek(ref)
        entry = self._cells.pop((cached.id, key), None) if cached else None
        if cached is None or entry is None:
            return None
        slot, touched = entry
        now = max(clock, cached.latest_time, slot.cell.timestamp if slot.cell else 0)
        return SQLiteTransaction(db, cached, touched, now, {key: slot})


def _try_step(transaction: SQLiteTransaction, step: Callable[[SQLiteTransaction], Reply]) -> Reply | None:
    """Run a step on cached values; return None if it changed nothing, because its outcome is then uncertain."""
    try:
        reply = step(transaction)
    except (StaleCache, StateManagerError):
        if transaction.changed:
            raise
        return None
    return reply if transaction.changed else None
