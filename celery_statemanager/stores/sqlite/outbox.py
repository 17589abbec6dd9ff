"""The tables with the messages of jobs, which rows are claimed, and what rows keep of their stages."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, partial

from celery_statemanager.indexset import IndexSet
from celery_statemanager.records import Claim, JobRecord, JobRef, OutboxState, Returned
from celery_statemanager.stores.capabilities import VALUES_PAGE, draft_expired
from celery_statemanager.stores.sqlite import jobs as job_rows
from celery_statemanager.stores.sqlite.jobs import JobCache, stored_key
from celery_statemanager.stores.sqlite.pool import Pool

_ADD = "INSERT OR REPLACE INTO block (incarnation, first, data) VALUES (?, ?, ?)"
_GET = "SELECT first, data FROM block WHERE incarnation = ? AND first <= ? ORDER BY first DESC LIMIT 1"
_IS_DRAFT = "SELECT 1 FROM draft WHERE incarnation = ?"
_EXTEND = "INSERT OR REPLACE INTO draft (incarnation, lease_until) VALUES (?, ?)"

_CLAIMED = "SELECT claimed FROM outbox WHERE job = ?"
_PUT_CLAIMED = "INSERT OR REPLACE INTO outbox (job, claimed) VALUES (?, ?)"
_CLAIMS = "SELECT publisher, rows, at, until FROM claim WHERE job = ?"
_PUT_CLAIM = "INSERT OR REPLACE INTO claim (job, publisher, rows, at, until) VALUES (?, ?, ?, ?, ?)"
_DROP_CLAIM = "DELETE FROM claim WHERE job = ? AND publisher = ?"
_RETURNED = "SELECT begun, low, high FROM returned WHERE job = ? ORDER BY begun, low"
_PUT_RETURNED = "INSERT INTO returned (job, begun, low, high) VALUES (?, ?, ?, ?)"
_DROP_RETURNED = "DELETE FROM returned WHERE job = ? AND begun = ? AND low = ?"

_PUT_VALUE = "INSERT OR REPLACE INTO value (job, task_index, value) VALUES (?, ?, ?)"
_DROP_VALUE = "DELETE FROM value WHERE job = ? AND task_index = ?"
_VALUES = "SELECT task_index, value FROM value WHERE job = ? AND task_index BETWEEN ? AND ? ORDER BY task_index"
_VALUE = """
SELECT v.value FROM job j JOIN value v ON v.job = j.id
WHERE j.job_id = ? AND j.run_token = ? AND j.incarnation = ? AND v.task_index = ?
"""


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


def create_job(db: sqlite3.Connection, job: JobRecord, now: int) -> JobRecord:
    """Store a new job, and turn its draft into its messages. Raises: JobExists, StoreError."""
    stored = replace(job, created_at=now, last_activity=now, revision=1, latches=dict(job.latches))
    job_rows.insert(db, stored)
    if job.flow is not None and not _forget_draft(db, job.incarnation):
        raise draft_expired(job)
    return stored


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
    claimed = db.execute(_CLAIMED, (number,)).fetchone()
    claims = {
        publisher: Claim(_parsed(rows), at, until) for publisher, rows, at, until in db.execute(_CLAIMS, (number,))
    }
    returned = db.execute(_RETURNED, (number,)).fetchall()
    begun, waiting = (IndexSet.from_ranges(each[1:] for each in returned if each[0] == of) for of in (1, 0))
    return OutboxState(claimed[0] if claimed else 0, claims, Returned(begun, waiting))


def put_state(db: sqlite3.Connection, number: int, old: OutboxState, new: OutboxState) -> None:
    """Store the changes of which rows of a job are claimed."""
    if new.claimed != old.claimed:
        db.execute(_PUT_CLAIMED, (number, new.claimed))
    for name in old.claims:
        if name not in new.claims:
            db.execute(_DROP_CLAIM, (number, name))
    for name, claim in new.claims.items():
        if old.claims.get(name) != claim:
            db.execute(_PUT_CLAIM, (number, name, str(claim.rows), claim.at, claim.until))
    _put_returned(db, number, 1, old.returned.begun, new.returned.begun)
    _put_returned(db, number, 0, old.returned.waiting, new.returned.waiting)


def get_value(db: sqlite3.Connection, ref: JobRef, row: int) -> str | None:
    """Return what a row keeps of its newest finished stage."""
    found = db.execute(_VALUE, (*stored_key(ref.key), ref.incarnation, row)).fetchone()
    return found[0] if found else None


def pages_of_values(pool: Pool, jobs: JobCache, ref: JobRef, rows: IndexSet) -> Iterator[list[tuple[int, str]]]:
    """Yield what rows keep, in row order and page by page. Raises: JobNotFound."""
    left: IndexSet | None = rows
    while left is not None:
        page, left = pool.read(partial(_read_values, jobs, ref, left))
        yield page


def _read_values(
    jobs: JobCache, ref: JobRef, rows: IndexSet, db: sqlite3.Connection
) -> tuple[list[tuple[int, str]], IndexSet | None]:
    """Return a page of values, and the rows after it; None if there are no more. Raises: JobNotFound."""
    number, size = jobs.current(db, ref).id, 0
    page: list[tuple[int, str]] = []
    for low, high in rows.ranges:
        for row, value in db.execute(_VALUES, (number, low, high)):
            page.append((row, value))
            size += len(value)
            if size >= VALUES_PAGE:
                return page, rows.without(IndexSet(range(row + 1)))
    return page, None


def put_value(db: sqlite3.Connection, number: int, row: int, value: str | None) -> None:
    """Store or remove what a row keeps of its newest finished stage."""
    if value is None:
        db.execute(_DROP_VALUE, (number, row))
    else:
        db.execute(_PUT_VALUE, (number, row, value))


def _put_returned(db: sqlite3.Connection, number: int, begun: int, old: IndexSet, new: IndexSet) -> None:
    before, after = set(old.ranges), set(new.ranges)
    for low, _ in before - after:
        db.execute(_DROP_RETURNED, (number, begun, low))
    for low, high in after - before:
        db.execute(_PUT_RETURNED, (number, begun, low, high))


_parsed = lru_cache(1_000)(IndexSet.parse)
"""Cached, because every claim of a job reads the claims of all its publishers."""


def _forget_draft(db: sqlite3.Connection, incarnation: str) -> bool:
    return db.execute("DELETE FROM draft WHERE incarnation = ?", (incarnation,)).rowcount == 1
