"""Changes read by polling, and what polling costs."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from sqlite_kit import fill, in_child, open_files, opened

from celery_statemanager.errors import JobNotFound, StoreError
from celery_statemanager.models import Scope
from celery_statemanager.records import Cancellation
from celery_statemanager.stores.sqlite import SQLiteStore
from celery_statemanager.stores.sqlite.watch import MAX_STATES
from celery_statemanager.testing.kit import PATIENCE, Grid, read_until


class TestWatching:
    def test_every_change_is_read_promptly(self, path: Path, store: SQLiteStore) -> None:
        grid = Grid.create(store)
        watch = store.watch(grid.ref, Scope())
        delays = []
        with opened(path) as other:
            for number in range(1, 31):
                write = threading.Timer(0.03, grid.seen_by(other).write, ("a", 0, 5))
                write.start()
                batch = read_until(watch, lambda batch, number=number: number in [s.version for s in batch.states])  # type: ignore[misc]
                stamp = batch.states[-1].timestamp
                assert stamp is not None
                delays.append(time.time() - stamp.timestamp())
                write.join()
        assert sorted(delays)[len(delays) // 4] < 0.03

    def test_an_idle_watch_uses_little_cpu_time(self, store: SQLiteStore) -> None:
        watch = store.watch(Grid.create(store).ref, Scope())
        begun = time.thread_time()
        assert watch.read(1.0).states == []
        assert time.thread_time() - begun < 0.2

    def test_a_watch_reads_no_writes_of_other_jobs(self, store: SQLiteStore) -> None:
        watch = store.watch(Grid.create(store).ref, Scope())
        Grid.create(store, job_id="other").write("a", 0, 5)
        store.put_worker("w", "{}", 5)
        batch = watch.read(0.05)
        assert (batch.states, batch.job_changed) == ([], False)

    def test_many_changes_arrive_in_several_batches(self, store: SQLiteStore) -> None:
        rows = 2 * MAX_STATES + 500
        grid = Grid.create(store, rows)
        watch = store.watch(grid.ref, Scope("a"))
        fill(store, grid.ref, rows)
        sizes = [len(watch.read(PATIENCE).states) for _ in range(3)]
        assert sizes == [MAX_STATES, MAX_STATES, 500]
        assert watch.read(0).states == []

    def test_many_watches_share_one_connection(self, path: Path, store: SQLiteStore) -> None:
        grid = Grid.create(store)
        watches = [store.watch(grid.ref, Scope()) for _ in range(50)]
        grid.write("a", 0, 5)
        assert [len(watch.read(PATIENCE).states) for watch in watches] == [1] * 50
        assert open_files(path) <= 8

    def test_a_watch_of_a_deleted_job_raises_job_not_found(self, store: SQLiteStore) -> None:
        grid = Grid.create(store)
        watch = store.watch(grid.ref, Scope())
        in_child(grid.delete)
        with pytest.raises(JobNotFound):
            watch.read(PATIENCE)

    def test_a_watch_of_a_damaged_file_raises_a_store_error(self, path: Path) -> None:
        store = opened(path)
        watch = store.watch(Grid.create(store).ref, Scope())
        store.close()
        path.write_bytes(b"no database any more " * 999)
        with pytest.raises(StoreError, match="overwritten"):
            watch.read(PATIENCE)

    def test_a_failed_poll_is_repeated_on_a_new_connection(self, store: SQLiteStore) -> None:
        grid = Grid.create(store)
        watch = store.watch(grid.ref, Scope())
        polled = store._poller._connection
        assert polled is not None
        polled.close()
        with pytest.raises(StoreError):
            watch.read(0)
        grid.write("a", 0, 5)
        assert len(watch.read(0).states) == 1

    def test_an_unstarted_cell_of_a_cancelled_job_is_watched_as_cancelled(self, store: SQLiteStore) -> None:
        grid = Grid.create(store, 2, ("a",))
        watch = store.watch(grid.ref, Scope())
        grid.write("a", 0, 0)
        grid.update(lambda job: replace(job, cancelled=Cancellation("no more", 1)))
        batch = read_until(watch, lambda batch: batch.job_changed and bool(batch.states))
        assert batch.states[-1:] in ([grid.state("a", 0)], [replace(grid.state("a", 0), status=0, message=None)])
