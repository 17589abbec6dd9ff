"""The store is unavailable for five times the lease during a job (rule R18): every task runs once."""

import sqlite3
import threading
import time
from contextlib import contextmanager

import pytest
from conftest import load
from servers import running_redis

from celery_statemanager import Status

SECONDS = 30.0
PATIENCE = 60


@contextmanager
def redis_store(home):
    """Yield the URL of a Redis that persists every write, and a context in which it is down."""
    with running_redis(appendonly="yes", appendfsync="always") as server:

        @contextmanager
        def away():
            server.stop(kill=True)
            yield
            server.start()

        yield server.url, away


@contextmanager
def sqlite_store(home):
    """Yield the URL of a file, and a context in which it is locked."""

    @contextmanager
    def away():
        connection = sqlite3.connect(home / "states.db", isolation_level=None, timeout=20)
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")
        connection.close()

    yield f"sqlite:///{home}/states.db", away


@pytest.mark.parametrize("kind", [redis_store, sqlite_store])
def test_a_job_finishes_after_half_a_minute_without_its_store(
    kind, tmp_path, request, start_configured_worker, key, eventually
):
    if not request.config.getoption("--full"):
        pytest.skip("with --full")
    with kind(tmp_path) as (url, away):
        environment = {"TRACKED_HOME": str(tmp_path), "TRACKED_BROKER": "filesystem://", "TRACKED_STORE": url}
        own = load(environment)
        worker = start_configured_worker(environment, "prefork", "celery")
        rows = [f"{key}-{row}" for row in range(4)]
        job = own.states.submit([own.late_gate.s(row) for row in rows], on_success=own.callback.s())
        eventually(lambda: own.notes(rows[0]) and own.notes(rows[1]))
        started_at = time.monotonic()
        with away():
            for row in rows:
                (tmp_path / f"{row}.go").touch()
            eventually(lambda: all(len(own.notes(row)) == 2 for row in rows))
            worked = time.monotonic() - started_at
            threading.Event().wait(SECONDS - worked)
        assert worked < 2 * own.app.conf.statemanager_store_timeout + 2.0, (
            "only one call per process may wait for the store"
        )
        assert job.wait(PATIENCE).finished == 4
        eventually(lambda: len(own.notes(f"callback.{job.id}")) == 1)
        assert [own.notes(row) for row in rows] == [["begun 1", "ended 1"]] * 2 + [["begun None", "ended None"]] * 2
        assert {state.status for state in job.list_states()} == {Status.FINISHED}
        assert worker.stop() == 0
        own.states.store.close()
        own.app.close()
