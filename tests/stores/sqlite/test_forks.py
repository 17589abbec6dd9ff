"""Connections and their locks are not used across a fork."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from pathlib import Path

import pytest
from sqlite_kit import forked, held_by_another_thread, in_another_thread, in_child, open_files, opened, recount

from celery_statemanager.models import Scope
from celery_statemanager.stores.sqlite import SQLiteStore
from celery_statemanager.stores.sqlite.pool import abandoned
from celery_statemanager.stores.sqlite.watch import SQLiteWatch
from celery_statemanager.testing.kit import PATIENCE, Grid, read_until


class TestForks:
    def test_a_connection_is_not_used_across_a_fork(self, path: Path, store: SQLiteStore) -> None:
        grid = Grid.create(store)
        watch = store.watch(grid.ref, Scope())

        def work() -> None:
            assert open_files(path) == 0
            for _ in range(50):
                grid.write("a", 0, 5)
            assert len(read_until(watch, lambda batch: bool(batch.states)).states) == 1

        wait = forked(work)
        assert open_files(path) == 0
        for _ in range(50):
            grid.write("a", 0, 6)
        wait()
        assert grid.cell("a", 0).version == 100
        assert read_until(watch, lambda batch: batch.states[-1:] != [] and batch.states[-1].version == 100)
        recount(path)

    def test_a_fork_waits_for_running_calls_and_both_processes_continue(self, path: Path, store: SQLiteStore) -> None:
        grid = Grid.create(store, 4)
        stop = threading.Event()

        def write_repeatedly(row: int) -> None:
            while not stop.is_set():
                grid.write("a", row, 5)
                grid.lowest()

        threads = [threading.Thread(target=write_repeatedly, args=(row,), daemon=True) for row in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(20):
                in_child(lambda: [grid.write("a", 2, 7) for _ in range(5)])
        finally:
            stop.set()
            for thread in threads:
                thread.join(PATIENCE)
        assert recount(path)["a", 2] == 100

    def test_a_fork_waits_for_a_limited_time_and_the_child_abandons_the_connection(self, path: Path) -> None:
        store = opened(path, timeout=0.05)
        grid = Grid.create(store)

        def work() -> None:
            assert len(abandoned) == 1
            grid.write("a", 0, 5)

        with in_another_thread(
            lambda wait_here: store._pool.read(lambda db: (db.execute("SELECT * FROM job").fetchone(), wait_here()))
        ):
            in_child(work)
        assert grid.cell("a", 0).version == 1
        store.close()

    def test_a_running_watch_survives_forks_and_can_be_closed_in_the_child(self, store: SQLiteStore) -> None:
        grid = Grid.create(store)
        watch = store.watch(grid.ref, Scope())
        versions: list[int] = []
        reader = threading.Thread(
            daemon=True,
            target=lambda: versions.extend(
                state.version
                for state in read_until(
                    watch, lambda batch: any(state.version == 20 for state in batch.states), 3 * PATIENCE
                ).states
            ),
        )
        reader.start()
        for _ in range(20):
            in_child(lambda: (grid.write("a", 0, 5), watch.close()))
        reader.join(3 * PATIENCE)
        assert versions[-1] == 20

    def test_a_fork_without_python_hooks_is_detected_at_the_next_call(self, path: Path, store: SQLiteStore) -> None:
        grid = Grid.create(store)
        watch = store.watch(grid.ref, Scope())
        grid.write("a", 0, 5)
        pid = ctypes.PyDLL(None).fork()
        if pid == 0:
            seen = grid.write("a", 0, 6).cell.version == 2 and len(watch.read(PATIENCE).states) == 1
            os._exit(0 if seen and len(abandoned) == 3 else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert grid.write("a", 0, 7).cell.version == 3
        recount(path)

    def test_a_child_forked_without_python_hooks_does_not_inherit_a_write_lock(self, store: SQLiteStore) -> None:
        grid = Grid.create(store)
        with held_by_another_thread(store._pool.write_lock):
            pid = ctypes.PyDLL(None).fork()
            if pid == 0:
                try:
                    os._exit(0 if grid.write("a", 0, 5).cell.version == 1 else 1)
                finally:
                    os._exit(2)
        assert os.waitpid(pid, 0)[1] == 0
        assert grid.write("a", 0, 6).cell.version == 2

    def test_a_child_can_close_a_watch_that_another_thread_is_closing(self, store: SQLiteStore) -> None:
        watch = store.watch(Grid.create(store).ref, Scope())
        assert isinstance(watch, SQLiteWatch)
        with held_by_another_thread(watch._closed._cond):
            in_child(watch.close)

    def test_a_signal_during_the_wait_before_a_fork_leaves_the_store_usable(self, store: SQLiteStore) -> None:
        grid = Grid.create(store)

        def interrupt(*_: object) -> None:
            raise InterruptedError

        with in_another_thread(store._pool.read):
            before = signal.signal(signal.SIGALRM, interrupt)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            try:
                with pytest.raises(InterruptedError):
                    store._pool.before_fork()
            finally:
                signal.signal(signal.SIGALRM, before)
        assert grid.write("a", 0, 5).cell.version == 1

    def test_a_closed_watch_stays_closed_in_a_child(self, store: SQLiteStore) -> None:
        watch = store.watch(Grid.create(store).ref, Scope())
        watch.close()
        in_child(lambda: watch.read(600))
