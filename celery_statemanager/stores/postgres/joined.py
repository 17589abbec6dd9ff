"""Creation of a job in a transaction of the caller. Both are committed or rolled back together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import psycopg

from celery_statemanager.records import JobKey, JobRecord, JobRef
from celery_statemanager.stores.capabilities import JobCreator
from celery_statemanager.stores.postgres import jobs, outbox
from celery_statemanager.stores.postgres.pool import Pool
from celery_statemanager.stores.postgres.put import CLOCK

Result = TypeVar("Result")


class TransactionJobs(JobCreator):
    """Creates jobs on a connection that another program owns. It begins and ends no transaction.

    Args:
        connection: a connection of psycopg to the database of the store.
    """

    def __init__(self, connection: psycopg.Connection[Any], pool: Pool) -> None:
        self._connection = connection
        self._pool = pool
        self._names = pool.names
        self._jobs = jobs.JobCache(pool.names)

    def now(self) -> int:
        row = self._run(lambda db: db.execute(f"SELECT {CLOCK}").fetchone())
        assert row is not None
        return int(row[0])

    def get_job(self, key: JobKey) -> JobRecord:
        return self._run(lambda db: self._jobs.get(db, key).job)

    def add_block(self, ref: JobRef, first: int, data: bytes, lease: float) -> None:
        self._run(lambda db: outbox.add_block(db, self._names, ref, first, data, lease))

    def drop_draft(self, ref: JobRef) -> None:
        self._run(lambda db: outbox.drop_draft(db, self._names, ref.incarnation))

    def create_job(self, job: JobRecord) -> JobRecord:
        def create(db: psycopg.Connection[Any]) -> JobRecord:
            with db.transaction():  # a savepoint, so that a refusal changes nothing
                stored = jobs.insert(db, self._names, job)
                outbox.accept(db, self._names, stored)
            return stored

        return self._run(create)

    def _run(self, action: Callable[[psycopg.Connection[Any]], Result]) -> Result:
        try:
            return action(self._connection)
        except psycopg.Error as error:
            raise self._pool.translate(error) from error
