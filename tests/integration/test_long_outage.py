"""The store is away for half a minute in mid-job, five times the lease (rule R18): all work is done once."""

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
    """A Redis that forgets nothing, killed and started again; the broker is elsewhere."""
    with running_redis(appendonly="yes", appendfsync="always") as server:

        @contextmanager
        def away():
            server.stop(kill=True)
            yield
            server.start()

        yield server.url, away


@contextmanager
def sqlite_store(home):
    """A file that somebody keeps locked."""

    @contextmanager
    def away():
        connection = sqlite3.connect(home / "states.db", isolation_level=None, timeout=20)
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")
        connection.close()

    yield f"sqlite:///{home}/states.db", away


@pytest.mark.parametrize("kind", [redis_store, sqlite_store])
def test_half_a_minute_without_a_store(kind, tmp_path, request, hired, key, eventually):
    if not request.config.getoption("--full"):
        pytest.skip("with --full")
    with kind(tmp_path) as (url, away):
        environment = {"TRACKED_HOME": str(tmp_path), "TRACKED_BROKER": "filesystem://", "TRACKED_STORE": url}
        own = load(environment)
        worker = hired(environment, "prefork", "celery")
        rows = [f"{key}-{row}" for row in range(4)]
        job = own.states.submit([own.late_gate.s(row) for row in rows], on_success=own.callback.s())
        eventually(lambda: own.notes(rows[0]) and own.notes(rows[1]))
        began = time.monotonic()
        with away():
            for row in rows:
                (tmp_path / f"{row}.go").touch()
            eventually(lambda: all(len(own.notes(row)) == 2 for row in rows))
            worked = time.monotonic() - began
            threading.Event().wait(SECONDS - worked)
        assert worked < 2 * own.app.conf.statemanager_store_timeout + 2.0, (
            "nothing waited for the store but one call a process"
        )
        assert job.wait(PATIENCE).finished == 4
        eventually(lambda: len(own.notes(f"callback.{job.id}")) == 1)
        assert [own.notes(row) for row in rows] == [["begun 1", "ended 1"]] * 2 + [["begun None", "ended None"]] * 2
        assert {state.status for state in job.list_states()} == {Status.FINISHED}
        assert worker.stop() == 0
        own.states.store.close()
        own.app.close()
