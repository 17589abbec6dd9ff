"""A connection is used by one call at a time and closed in the end."""

from __future__ import annotations

import gc
import os
import sqlite3
import threading
from pathlib import Path

import pytest
from sqlite_kit import forked, open_files, opened, recount

from celery_statemanager.errors import StoreUnavailable
from celery_statemanager.manager import Manager
from celery_statemanager.models import Scope
from celery_statemanager.stores.sqlite import SQLiteStore
from celery_statemanager.stores.sqlite.connection import PAGE_BYTES
from celery_statemanager.testing.kit import PATIENCE, Grid, read_until


class TestConnections:
    def test_many_processes_may_create_the_file_at_once(self, path: Path) -> None:
        gate, opener = os.pipe()

        def work(name: str) -> None:
            os.close(opener)
            os.read(gate, 1)
            with opened(path) as store:
                Manager.create(store, name, num_tasks=1, task_index=0).set_state("a", 5)

        waits = [forked(lambda name=f"job {number}": work(name)) for number in range(12)]  # type: ignore[misc]
        os.close(opener)
        os.close(gate)
        for wait in waits:
            wait()
        with opened(path) as store:
            assert len(store.list_jobs().jobs) == 12
        recount(path)

    def test_the_database_uses_a_write_ahead_log_with_small_pages(self, path: Path, store: SQLiteStore) -> None:
        Grid.create(store)
        for name, value in {"synchronous": 1, "journal_mode": "wal", "page_size": PAGE_BYTES}.items():
            assert store._pool.write(lambda db, name=name: db.execute(f"PRAGMA {name}").fetchone()) == (value,)

    def test_ended_threads_leave_no_files_open(self, path: Path, store: SQLiteStore) -> None:
        grid = Grid.create(store, 200)
        for row in range(200):
            thread = threading.Thread(target=lambda row=row: grid.write("a", row, 5))  # type: ignore[misc]
            thread.start()
            thread.join(PATIENCE)
        assert len(grid.states()) == 200
        assert open_files(path) <= 6
        threads = [threading.Thread(target=lambda row=row: grid.write("a", row, 6)) for row in range(200)]  # type: ignore[misc]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert {state.version for state in grid.states()} == {2}
        assert open_files(path) <= 40

    def test_a_closed_store_has_no_open_file_and_connects_again(self, path: Path) -> None:
        store = opened(path)
        grid = Grid.create(store)
        watch = store.watch(grid.ref, Scope())
        grid.write("a", 0, 5)
        assert open_files(path)
        store.close()
        assert open_files(path) == 0
        assert [state.version for state in read_until(watch, lambda batch: bool(batch.states)).states] == [1]
        assert grid.write("a", 0, 6).cell.version == 2
        store.close()
        store.close()
        assert open_files(path) == 0

    def test_a_connection_in_use_while_the_store_closes_is_closed_on_return(self, path: Path) -> None:
        store = opened(path)

        def close(_: sqlite3.Connection) -> int:
            store.close()
            return open_files(path)

        assert store._pool.read(close)
        assert open_files(path) == 0

    def test_an_unreferenced_store_closes_its_files(self, path: Path) -> None:
        store = opened(path)
        Grid.create(store).write("a", 0, 5)
        assert open_files(path)
        del store
        gc.collect()
        assert open_files(path) == 0

    def test_a_nested_call_of_the_same_thread_does_no_damage(self, path: Path) -> None:
        inner: list[object] = []

        def clock() -> float:
            if store is not None and not inner:
                inner.append(None)
                inner[0] = list(store.list_workers())
                with pytest.raises(StoreUnavailable):
                    store.drop_worker("w")
            return 1.0

        store = None
        outer = opened(path, timeout=0.05, clock=clock)
        grid = Grid.create(outer)
        store = outer
        assert grid.write("a", 0, 5).cell.version == 1
        assert inner == [[]]
        recount(path)
        outer.close()
