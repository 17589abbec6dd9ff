"""PostgreSQL: a job that is created in a transaction of the caller exists if that transaction is committed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest
from postgres_kit import PostgresServer

from celery_statemanager import JobExists, JobNotFound, StoreError, open_store
from celery_statemanager.records import Flow, new_job
from celery_statemanager.stores.postgres import PostgresStore


@pytest.fixture
def postgres_store(postgres_server: PostgresServer, prefix: str) -> Iterator[PostgresStore]:
    with open_store(f"{postgres_server.url}?schema={prefix.replace('-', '_')}") as store:
        assert isinstance(store, PostgresStore)
        store.create_tables()
        yield store


@pytest.mark.parametrize("cursors", [psycopg.Cursor, psycopg.ClientCursor])
def test_a_job_joins_the_transaction_of_the_caller(
    postgres_server: PostgresServer, postgres_store: PostgresStore, cursors: type[psycopg.Cursor]
) -> None:
    job = replace(new_job("job", 2, ("a",)), flow=Flow())
    with postgres_server.connect() as caller:
        caller.cursor_factory = cursors
        creator = postgres_store.on_connection(caller)
        for committed in (False, True):
            with caller.transaction(force_rollback=not committed):
                with pytest.raises(StoreError, match="stored messages were deleted"):
                    creator.create_job(job)
            with caller.transaction(force_rollback=not committed):
                creator.add_block(job.ref, 0, b"messages", 60.0)
                creator.add_block(job.ref, 1, b"more", 60.0)
                stored = creator.create_job(job)
                assert creator.get_job(job.key) == stored
                assert abs(creator.now() - stored.created_at) < 60_000_000
                with pytest.raises(JobNotFound):
                    postgres_store.get_job(job.key)
            assert (postgres_store.get_block(job.ref, 1) == (1, b"more")) is committed
        assert postgres_store.get_job(job.key) == stored
        with caller.transaction(), pytest.raises(JobExists):
            creator.create_job(job)
        with caller.transaction():
            other = new_job("other", 1)
            creator.add_block(other.ref, 0, b"x", 60.0)
            creator.drop_draft(other.ref)
        assert postgres_store.get_block(other.ref, 0) is None
