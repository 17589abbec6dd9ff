"""PostgreSQL behind PgBouncer in transaction mode: no session, so no prepared statement and no LISTEN."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
from postgres_kit import PostgresServer, running_pgbouncer

from celery_statemanager import StoreError, Subscription, open_store
from celery_statemanager.models import Scope
from celery_statemanager.stores.postgres import PostgresStore
from celery_statemanager.testing.kit import PATIENCE, Grid, read_until


@pytest.fixture(scope="module")
def pooled_url(postgres_server: PostgresServer) -> Iterator[str]:
    with running_pgbouncer(postgres_server) as url:
        yield f"{url}?schema=pooled"


@pytest.fixture
def pooled(pooled_url: str, prefix: str) -> Iterator[PostgresStore]:
    with open_store(pooled_url, timeout=10.0) as store:
        assert isinstance(store, PostgresStore)
        yield store


def test_a_watch_polls_without_listen(pooled: PostgresStore, prefix: str) -> None:
    grid = Grid.create(pooled, job_id=prefix)
    with closing(pooled.watch(grid.ref, Scope())) as watch:
        assert watch._signal is None
        for row in range(3):
            grid.write("a", row, 5)
        assert len(read_until(watch, lambda batch: len(batch.states) == 3).states) == 3


def test_more_threads_than_the_pooler_has_sessions_write_one_job(pooled: PostgresStore, prefix: str) -> None:
    grid = Grid.create(pooled, 12, ("a",), job_id=prefix)
    failed: list[BaseException] = []

    def run(row: int) -> None:
        try:
            grid.begin("a", row)
            for status in range(2, 30):
                grid.write("a", row, status)
            grid.end("a", row)
        except BaseException as error:  # noqa: BLE001 - raised again below
            failed.append(error)

    threads = [threading.Thread(target=run, args=(row,)) for row in range(12)]
    with Subscription(pooled, grid.ref, Scope(), until_settled=True) as events:
        for thread in threads:
            thread.start()
        newest = {event.state.task_index: event.state.version for event in events}
    for thread in threads:
        thread.join(PATIENCE)
    assert failed == []
    assert newest == dict.fromkeys(range(12), 30)
    assert grid.decided == {"success", "settled"}


def test_a_pooler_in_session_mode_works_too(postgres_server: PostgresServer, prefix: str) -> None:
    """PgBouncer gives its clients other process numbers, so that its session mode is not recognized."""
    with running_pgbouncer(postgres_server, "session") as url, open_store(f"{url}?schema=pooled") as store:
        grid = Grid.create(store, job_id=prefix)
        with closing(store.watch(grid.ref, Scope())) as watch:
            grid.write("a", 0, 5)
            assert read_until(watch, lambda batch: bool(batch.states)).states


def test_an_isolation_that_cannot_be_changed_is_refused(postgres_server: PostgresServer, pooled_url: str) -> None:
    postgres_server.execute("CREATE DATABASE strict")
    postgres_server.execute("ALTER DATABASE strict SET default_transaction_isolation = 'serializable'")
    url = pooled_url.replace("/postgres?", "/strict?")
    with open_store(url) as store, pytest.raises(StoreError, match="has the isolation serializable"):
        store.now()
