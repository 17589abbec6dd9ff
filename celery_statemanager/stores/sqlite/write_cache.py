"""Cells as this process wrote them last, so that who writes one again need not read it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import TypeVar

from celery_statemanager.errors import StateManagerError
from celery_statemanager.records import JobRef
from celery_statemanager.stores.sqlite.jobs import Jobs
from celery_statemanager.stores.sqlite.transaction import Place, Slot, SQLiteTransaction, StaleCache

MOST_RECENT = 128

Reply = TypeVar("Reply")


class WriteCache:
    """What was written last is supposed to be so still, and the write itself proves it or changes nothing.

    Whatever else would come of it (a refusal, a repetition) is found by reading. So nothing here need be true any
    more: others may have written since. But it was once: what is not committed may bear the number of a column that
    others make. For the thread whose turn it is to write.
    """

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._written: dict[tuple[int, Place], tuple[Slot, int]] = {}
        self._made: tuple[Place, SQLiteTransaction] | None = None

    def step(
        self,
        db: sqlite3.Connection,
        ref: JobRef,
        place: Place,
        clock: int,
        step: Callable[[SQLiteTransaction], Reply],
    ) -> Reply:
        """Make a step that begins with this cell. Raises: JobNotFound, and what the step raises."""
        self._made = None
        transaction = self._recalled(db, ref, place, clock)
        reply = None if transaction is None else _proven(transaction, step)
        if transaction is None or reply is None:
            transaction = SQLiteTransaction.read(db, self._jobs, ref, clock, place)
            reply = step(transaction)
        self._made = place, transaction
        return reply

    def keep(self) -> None:
        """Remember the last step's cell, which is committed now, if it may soon be written again: has not ended."""
        if self._made is None:
            return
        (place, transaction), self._made = self._made, None
        spot = transaction.spot(place)
        if spot.cell is not None and not spot.cell.final:
            self._written[transaction.id, place] = spot, transaction.touched
            if len(self._written) > MOST_RECENT:
                del self._written[next(iter(self._written))]

    def _recalled(self, db: sqlite3.Connection, ref: JobRef, place: Place, clock: int) -> SQLiteTransaction | None:
        known = self._jobs.known(ref)
        written = self._written.pop((known.id, place), None) if known else None
        if known is None or written is None:
            return None
        spot, touched = written
        now = max(clock, known.said_at, spot.cell.timestamp if spot.cell else 0)
        return SQLiteTransaction(db, known, touched, now, {place: spot})


def _proven(transaction: SQLiteTransaction, step: Callable[[SQLiteTransaction], Reply]) -> Reply | None:
    """Make a step; None where nothing came of it that is certain."""
    try:
        reply = step(transaction)
    except (StaleCache, StateManagerError):
        if transaction.changed:
            raise
        return None
    return reply if transaction.changed else None
