"""PostgreSQL: connections and the thread that listens are not used across a fork."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
from postgres_kit import PostgresServer
from sqlite_kit import forked, in_child

from celery_statemanager import open_store
from celery_statemanager.models import Scope
from celery_statemanager.stores.postgres import PostgresStore
from celery_statemanager.testing.kit import PATIENCE, Grid, read_until


@pytest.fixture
def postgres_store(postgres_server: PostgresServer, prefix: str) -> Iterator[PostgresStore]:
    with open_store(f"{postgres_server.url}?schema={prefix.replace('-', '_')}") as store:
        assert isinstance(store, PostgresStore)
        yield store


def test_parent_and_child_write_and_watch_after_a_fork(postgres_store: PostgresStore) -> None:
    grid = Grid.create(postgres_store)
    with closing(postgres_store.watch(grid.ref, Scope())) as watch:
        pids = {each.info.backend_pid for each in postgres_store._pool._idle}
        assert pids

        def work() -> None:
            for _ in range(50):
                grid.write("a", 0, 5)
            assert read_until(watch, lambda batch: bool(batch.states)).states
            assert not pids & {each.info.backend_pid for each in postgres_store._pool._idle}

        wait = forked(work)
        for _ in range(50):
            grid.write("a", 0, 6)
        wait()
        assert grid.cell("a", 0).version == 100
        assert pids & {each.info.backend_pid for each in postgres_store._pool._idle}
        read_until(watch, lambda batch: batch.states[-1:] != [] and batch.states[-1].version == 100)


def test_children_are_forked_while_other_threads_write(postgres_store: PostgresStore) -> None:
    grid = Grid.create(postgres_store, 4)
    stop = threading.Event()
    failed: list[BaseException] = []

    def write_repeatedly(row: int) -> None:
        try:
            while not stop.is_set():
                grid.write("a", row, 5)
                grid.lowest()
        except BaseException as error:  # noqa: BLE001 - raised again below
            failed.append(error)

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
    assert failed == []
    assert grid.cell("a", 2).version == 100


def test_a_running_watch_survives_forks_and_can_be_closed_in_the_child(postgres_store: PostgresStore) -> None:
    grid = Grid.create(postgres_store)
    watch = postgres_store.watch(grid.ref, Scope())
    versions: list[int] = []
    reader = threading.Thread(
        daemon=True,
        target=lambda: versions.extend(
            state.version
            for state in read_until(
                watch, lambda batch: any(state.version == 10 for state in batch.states), 3 * PATIENCE
            ).states
        ),
    )
    reader.start()
    for _ in range(10):
        in_child(lambda: (grid.write("a", 0, 5), watch.close()))
    reader.join(3 * PATIENCE)
    assert versions[-1] == 10
    watch.close()


def test_a_fork_without_python_hooks_is_detected_at_the_next_call(postgres_store: PostgresStore) -> None:
    grid = Grid.create(postgres_store)
    grid.write("a", 0, 5)
    pid = ctypes.PyDLL(None).fork()
    if pid == 0:
        try:
            os._exit(0 if grid.write("a", 0, 6).cell.version == 2 else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert grid.write("a", 0, 7).cell.version == 3
