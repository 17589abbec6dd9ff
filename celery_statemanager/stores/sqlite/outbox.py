"""The tables with the messages of jobs, and which rows are claimed."""

from __future__ import annotations

import sqlite3

from celery_statemanager.codec import outbox_from_json, outbox_to_json
from celery_statemanager.records import JobRecord, JobRef, OutboxState
from celery_statemanager.stores.capabilities import draft_expired

_ADD = "INSERT OR REPLACE INTO block (incarnation, first, data) VALUES (?, ?, ?)"
_GET = "SELECT first, data FROM block WHERE incarnation = ? AND first <= ? ORDER BY first DESC LIMIT 1"
_IS_DRAFT = "SELECT 1 FROM draft WHERE incarnation = ?"
_EXTEND = "INSERT OR REPLACE INTO draft (incarnation, lease_until) VALUES (?, ?)"
_PUT = "INSERT OR REPLACE INTO outbox (job, claimed, claims) VALUES (?, ?, ?)"


def add_block(db: sqlite3.Connection, ref: JobRef, first: int, data: bytes, lease_until: int) -> None:
    """Store a block of a draft, which the first block creates, and extend the lease. Raises: StoreError."""
    if first and not db.execute(_IS_DRAFT, (ref.incarnation,)).fetchone():
        raise draft_expired(ref.key)
    db.execute(_ADD, (ref.incarnation, first, data))
    db.execute(_EXTEND, (ref.incarnation, lease_until))


def get_block(db: sqlite3.Connection, incarnation: str, row: int) -> tuple[int, bytes] | None:
    """Return the block with a row, and its first row."""
    found: tuple[int, bytes] | None = db.execute(_GET, (incarnation, row)).fetchone()
    return found


def accept(db: sqlite3.Connection, job: JobRecord) -> None:
    """Turn the draft of a job into its messages. Raises: StoreError."""
    if job.flow is not None and not _forget_draft(db, job.incarnation):
        raise draft_expired(job)


def drop_draft(db: sqlite3.Connection, incarnation: str) -> None:
    """Delete a draft and its blocks."""
    if _forget_draft(db, incarnation):
        db.execute("DELETE FROM block WHERE incarnation = ?", (incarnation,))


def drop_expired(db: sqlite3.Connection, now: int) -> int:
    """Delete the drafts whose lease has ended; return their number."""
    expired = db.execute("SELECT incarnation FROM draft WHERE lease_until <= ?", (now,)).fetchall()
    for (incarnation,) in expired:
        drop_draft(db, incarnation)
    return len(expired)


def read_state(db: sqlite3.Connection, number: int) -> OutboxState:
    """Return which rows of a job are claimed."""
    row = db.execute("SELECT claimed, claims FROM outbox WHERE job = ?", (number,)).fetchone()
    return OutboxState() if row is None else outbox_from_json(*row)


def put_state(db: sqlite3.Connection, number: int, state: OutboxState) -> None:
    """Store which rows of a job are claimed."""
    db.execute(_PUT, (number, state.claimed, outbox_to_json(state)))


def _forget_draft(db: sqlite3.Connection, incarnation: str) -> bool:
    return db.execute("DELETE FROM draft WHERE incarnation = ?", (incarnation,)).rowcount == 1
