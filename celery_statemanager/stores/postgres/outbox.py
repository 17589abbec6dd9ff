"""The tables with the messages of jobs, the claims of rows, and the values that rows keep of their stages."""

# ruff: noqa: S608 - only names of our own columns and tables are interpolated; every value is bound

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any

import psycopg

from celery_statemanager.indexset import IndexSet
from celery_statemanager.records import Claim, JobRecord, JobRef, OutboxState, Returned
from celery_statemanager.stores.capabilities import VALUES_PAGE, draft_expired
from celery_statemanager.stores.postgres.connection import Connection
from celery_statemanager.stores.postgres.jobs import JobCache, stored_key
from celery_statemanager.stores.postgres.names import Names
from celery_statemanager.stores.postgres.pool import Pool
from celery_statemanager.stores.postgres.put import CLOCK

Statement = tuple[str, tuple[Any, ...]]
"""An SQL text and its values."""

_EXTEND = f"UPDATE {{draft}} SET lease_until = {CLOCK} + %s WHERE incarnation = %s"
_START = f"""
INSERT INTO {{draft}} (incarnation, lease_until) VALUES (%s, {CLOCK} + %s)
ON CONFLICT (incarnation) DO UPDATE SET lease_until = excluded.lease_until
"""
_ADD = """
INSERT INTO {block} (incarnation, first, data) VALUES (%s, %s, %s)
ON CONFLICT (incarnation, first) DO UPDATE SET data = excluded.data
"""
_GET = "SELECT first, data FROM {block} WHERE incarnation = %s AND first <= %s ORDER BY first DESC LIMIT 1"
_FORGET = "DELETE FROM {draft} WHERE incarnation = %s"

_CLAIMED = "SELECT claimed FROM {outbox} WHERE job = %s"
_PUT_CLAIMED = """
INSERT INTO {outbox} (job, claimed) VALUES (%s, %s) ON CONFLICT (job) DO UPDATE SET claimed = excluded.claimed
"""
_CLAIMS = "SELECT publisher, rows, at, until FROM {claim} WHERE job = %s"
_PUT_CLAIM = """
INSERT INTO {claim} (job, publisher, rows, at, until) VALUES (%s, %s, %s, %s, %s)
ON CONFLICT (job, publisher) DO UPDATE SET rows = excluded.rows, at = excluded.at, until = excluded.until
"""
_DROP_CLAIM = "DELETE FROM {claim} WHERE job = %s AND publisher = %s"
_RETURNED = "SELECT begun, low, high FROM {returned} WHERE job = %s ORDER BY begun, low"
_PUT_RETURNED = "INSERT INTO {returned} (job, begun, low, high) VALUES (%s, %s, %s, %s)"
_DROP_RETURNED = "DELETE FROM {returned} WHERE job = %s AND begun = %s AND low = %s"

_VALUES = "SELECT task_index, value FROM {value} WHERE job = %s AND task_index BETWEEN %s AND %s ORDER BY task_index"
_VALUE = """
SELECT v.value FROM {job} j JOIN {value} v ON v.job = j.id
WHERE j.job_id = %s AND j.run_token = %s AND j.incarnation = %s AND v.task_index = %s
"""


def add_block(db: psycopg.Connection[Any], names: Names, ref: JobRef, first: int, data: bytes, lease: float) -> None:
    """Store a block of a draft, which the first block creates, and extend the lease; in the caller's transaction.

    Raises: StoreError.
    """
    microseconds = round(lease * 1_000_000)
    if first == 0:
        db.execute(names.fill(_START), (ref.incarnation, microseconds))
    elif db.execute(names.fill(_EXTEND), (microseconds, ref.incarnation)).rowcount == 0:
        raise draft_expired(ref.key)
    db.execute(names.fill(_ADD), (ref.incarnation, first, data))


def get_block(db: Connection, names: Names, incarnation: str, row: int) -> tuple[int, bytes] | None:
    """Return the block with a row, and its first row."""
    found = db.execute(names.fill(_GET), (incarnation, row), binary=True).fetchone()
    return None if found is None else (found[0], found[1])


def accept(db: psycopg.Connection[Any], names: Names, job: JobRecord) -> None:
    """Turn the draft of a job into its messages, in the caller's transaction. Raises: StoreError."""
    if job.flow is not None and not _forget_draft(db, names, job.incarnation):
        raise draft_expired(job)


def drop_draft(db: psycopg.Connection[Any], names: Names, incarnation: str) -> None:
    """Delete a draft and its blocks."""
    if _forget_draft(db, names, incarnation):
        db.execute(names.fill("DELETE FROM {block} WHERE incarnation = %s"), (incarnation,))


def drop_expired(db: Connection, names: Names) -> int:
    """Delete the drafts whose lease has ended; return their number."""
    text = names.fill(f"DELETE FROM {{draft}} WHERE lease_until <= {CLOCK} RETURNING incarnation")
    expired = db.execute(text).fetchall()
    for (incarnation,) in expired:
        db.execute(names.fill("DELETE FROM {block} WHERE incarnation = %s"), (incarnation,))
    return len(expired)


def state_queries(names: Names, number: int) -> list[Statement]:
    """Return the statements whose rows ``state_of`` decodes."""
    return [(names.fill(text), (number,)) for text in (_CLAIMED, _CLAIMS, _RETURNED)]


def state_of(claimed: list[Any], claims: list[Any], returned: list[Any]) -> OutboxState:
    """Return which rows of a job are claimed."""
    by_publisher = {publisher: Claim(_parsed(rows), at, until) for publisher, rows, at, until in claims}
    begun, waiting = (IndexSet.from_ranges(each[1:] for each in returned if each[0] is of) for of in (True, False))
    return OutboxState(claimed[0][0] if claimed else 0, by_publisher, Returned(begun, waiting))


def changes(names: Names, number: int, old: OutboxState, new: OutboxState) -> list[Statement]:
    """Return the statements that store the changes of which rows of a job are claimed."""
    found: list[tuple[str, tuple[Any, ...]]] = []
    if new.claimed != old.claimed:
        found.append((_PUT_CLAIMED, (number, new.claimed)))
    found += [(_DROP_CLAIM, (number, name)) for name in old.claims if name not in new.claims]
    found += [
        (_PUT_CLAIM, (number, name, str(claim.rows), claim.at, claim.until))
        for name, claim in new.claims.items()
        if old.claims.get(name) != claim
    ]
    for begun, before, after in (
        (True, old.returned.begun.ranges, new.returned.begun.ranges),
        (False, old.returned.waiting.ranges, new.returned.waiting.ranges),
    ):
        found += [(_DROP_RETURNED, (number, begun, low)) for low, _ in set(before) - set(after)]
        found += [(_PUT_RETURNED, (number, begun, *each)) for each in set(after) - set(before)]
    return [(names.fill(text), values) for text, values in found]


def get_value(db: Connection, names: Names, ref: JobRef, row: int) -> str | None:
    """Return what a row keeps of its newest finished stage."""
    found = db.execute(names.fill(_VALUE), (*stored_key(ref.key), ref.incarnation, row)).fetchone()
    return found[0].decode() if found else None


def pages_of_values(pool: Pool, jobs: JobCache, ref: JobRef, rows: IndexSet) -> Iterator[list[tuple[int, str]]]:
    """Yield what rows keep, in row order and page by page. Raises: JobNotFound."""
    left: IndexSet | None = rows
    while left is not None:
        page, left = pool.call(partial(_read_values, pool.names, jobs, ref, left))
        yield page


def _read_values(
    names: Names, jobs: JobCache, ref: JobRef, rows: IndexSet, db: Connection
) -> tuple[list[tuple[int, str]], IndexSet | None]:
    """Return a page of values, and the rows after it; None if there are no more. Raises: JobNotFound."""
    number, size = jobs.read(db, ref).id, 0
    page: list[tuple[int, str]] = []
    for low, high in rows.ranges:
        after: int | None = low
        while after is not None:
            found = db.execute(names.fill(_VALUES + " LIMIT 1000"), (number, after, high)).fetchall()
            for row, value in found:
                page.append((row, value.decode()))
                size += len(value)
                if size >= VALUES_PAGE:
                    return page, rows.without(IndexSet(range(row + 1)))
            after = found[-1][0] + 1 if len(found) == 1000 else None
    return page, None


_parsed = lru_cache(1_000)(IndexSet.parse)
"""Cached, because every claim of a job reads the claims of all its publishers."""


def _forget_draft(db: psycopg.Connection[Any], names: Names, incarnation: str) -> bool:
    return db.execute(names.fill(_FORGET), (incarnation,)).rowcount == 1
