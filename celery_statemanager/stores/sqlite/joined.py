"""Creating a job inside a transaction of the caller, on the caller's own connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, TypeVar

from celery_statemanager.errors import StoreError, StoreUnavailable
from celery_statemanager.records import JobKey, JobRecord, JobRef
from celery_statemanager.stores.capabilities import JobCreator
from celery_statemanager.stores.sqlite import outbox
from celery_statemanager.stores.sqlite.connection import is_busy, translate
from celery_statemanager.stores.sqlite.jobs import JobCache
from celery_statemanager.stores.sqlite.schema import is_current, migrate
from celery_statemanager.stores.sqlite.shared import BorrowedConnection

Reply = TypeVar("Reply")


class TransactionJobs(JobCreator):
    """Creates jobs as rows of the caller's transaction. No other connection sees them before the commit.

    Args:
        connection: the caller's, with an open transaction.
        now: returns the time in microseconds since the epoch.
    """

    def __init__(self, connection: sqlite3.Connection, path: str, prefix: str, now: Callable[[], int]) -> None:
        self._db: Any = BorrowedConnection(connection, prefix)
        self._path = path
        self._jobs = JobCache()  # not the store's cache, because the transaction may be rolled back
        self._now = now

    def now(self) -> int:
        return self._now()

    def get_job(self, key: JobKey) -> JobRecord:
        return self._run(lambda db: self._jobs.get(db, key).job)

    def add_block(self, ref: JobRef, first: int, data: bytes, lease: float) -> None:
        until = self._now() + round(lease * 1_000_000)
        self._run(lambda db: outbox.add_block(db, ref, first, data, until))

    def drop_draft(self, ref: JobRef) -> None:
        self._run(lambda db: outbox.drop_draft(db, ref.incarnation))

    def create_job(self, job: JobRecord) -> JobRecord:
        return self._run(lambda db: outbox.create_job(db, job, self._now()))

    def _run(self, action: Callable[[sqlite3.Connection], Reply]) -> Reply:
        try:
            if not is_current(self._db, self._path):
                migrate(self._db)
            return action(self._db)
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def _translated(self, error: sqlite3.Error) -> StoreError:
        if is_busy(error):
            return StoreUnavailable(
                f"SQLite store {self._path}: {error}; another connection has written since this transaction began to "
                "read. Begin transactions that write with BEGIN IMMEDIATE. In Django 5.1 or later, set the option "
                "transaction_mode of the database to 'IMMEDIATE'"
            )
        return translate(error, self._path, 0.0)
