"""Watches: every change after their creation, newest version of each cell, no backlog (rule R7)."""

from __future__ import annotations

import threading

import pytest

from celery_statemanager.errors import JobNotFound
from celery_statemanager.feed import NO_CELLS
from celery_statemanager.models import Scope
from celery_statemanager.records import CALLBACK_ROW, Batch
from celery_statemanager.stores.base import Store
from celery_statemanager.testing.kit import FINISHED, PATIENCE, Grid, read_until


def cells(batch: Batch) -> list[tuple[str, int, int]]:
    """Return tag, row and version of the states of a batch."""
    return [(state.tag, state.task_index, state.version) for state in batch.states]


class WatchContract:
    """Tests of watches."""

    def test_a_watch_reports_changes_made_after_its_creation(self, store: Store) -> None:
        grid = Grid.create(store)
        grid.write("a", 0, 5)
        watch = store.watch(grid.ref, Scope())
        written = grid.write("a", 1, 7, message="new", payload='{"n":1}').cell
        batch = read_until(watch, lambda batch: ("a", 1, 1) in cells(batch))
        state = next(state for state in batch.states if state.task_index == 1)
        assert (state.status, state.message, state.payload) == (7, "new", {"n": 1})
        assert (state.event_id, state.job_id) == (written.event_id, "job")
        assert state == grid.state("a", 1)
        watch.close()

    def test_a_read_without_changes_returns_an_empty_batch_after_its_timeout(self, store: Store) -> None:
        watch = store.watch(Grid.create(store).ref, Scope())
        for timeout in (0.0, 0.01):
            batch = watch.read(timeout)
            assert (batch.states, batch.resync) == ([], False)
        watch.close()

    @pytest.mark.parametrize(
        ("scope", "expected"),
        [
            (Scope(), {("a", 0), ("a", 1), ("b", 0), ("b", 1)}),
            (Scope(tag="a"), {("a", 0), ("a", 1)}),
            (Scope(task_index=1), {("a", 1), ("b", 1)}),
            (Scope("b", 0), {("b", 0)}),
        ],
    )
    def test_a_watch_reports_only_the_cells_of_its_scope(
        self, store: Store, scope: Scope, expected: set[tuple[str, int]]
    ) -> None:
        grid = Grid.create(store)
        watch = store.watch(grid.ref, scope)
        for tag in "ab":
            for row in (0, 1):
                grid.write(tag, row, 5)
        batch = read_until(watch, lambda batch: len(batch.states) >= len(expected))
        assert {(state.tag, state.task_index) for state in batch.states} == expected
        assert watch.read(0.0).states == []
        watch.close()

    def test_a_slow_reader_receives_the_newest_version_of_each_cell(self, store: Store) -> None:
        grid = Grid.create(store)
        watch = store.watch(grid.ref, Scope())
        for status in range(1, 101):
            grid.write("a", 0, status)
            grid.write("a", 1, status)
        batch = read_until(watch, lambda batch: {("a", 0, 100), ("a", 1, 100)} <= set(cells(batch)))
        assert len(batch.states) == 2
        assert len(watch.read(0.0).states) == 0
        watch.close()

    def test_a_batch_lists_older_changes_first(self, store: Store) -> None:
        grid = Grid.create(store, 10)
        watch = store.watch(grid.ref, Scope())
        written = grid.write_each(("a", row) for row in (7, 3, 9, 3, 1))
        newest = {("a", 7, 1), ("a", 9, 1), ("a", 3, 2), ("a", 1, 1)}
        order: list[tuple[str, int, int]] = []
        while not newest <= set(order):
            batch = watch.read(PATIENCE)
            assert batch.states, f"only {order} arrived"
            order += cells(batch)
        assert [(tag, row) for tag, row, version in order if (tag, row, version) in newest] == written
        watch.close()

    def test_a_watch_reports_begins(self, store: Store) -> None:
        grid = Grid.create(store)
        watch = store.watch(grid.ref, Scope())
        grid.begin("a", 0)
        batch = read_until(watch, lambda batch: bool(batch.states))
        assert [(state.status, state.attempt) for state in batch.states] == [(1, 1)]
        watch.close()

    def test_a_watch_does_not_report_a_repeated_write(self, store: Store) -> None:
        grid = Grid.create(store)
        grid.write("a", 0, 5, event_id="e")
        watch = store.watch(grid.ref, Scope())
        grid.write("a", 0, 5, event_id="e")
        grid.write("a", 1, 5)
        assert cells(read_until(watch, lambda batch: bool(batch.states))) == [("a", 1, 1)]
        watch.close()

    def test_a_write_wakes_a_waiting_reader(self, store: Store) -> None:
        grid = Grid.create(store)
        watch = store.watch(grid.ref, Scope())
        got: list[Batch] = []
        reader = threading.Thread(target=lambda: got.append(read_until(watch, lambda batch: bool(batch.states))))
        reader.start()
        grid.write("a", 2, 5)
        reader.join(PATIENCE)
        assert [cells(batch) for batch in got] == [[("a", 2, 1)]]
        watch.close()

    def test_closing_a_watch_ends_a_read_in_progress_and_may_be_repeated(self, store: Store) -> None:
        watch = store.watch(Grid.create(store).ref, Scope())
        reader = threading.Thread(target=lambda: watch.read(600), daemon=True)
        reader.start()
        watch.close()
        reader.join(PATIENCE)
        assert not reader.is_alive()
        watch.close()
        assert watch.read(600).states == []

    def test_a_watch_of_any_scope_reports_a_changed_job_record(self, store: Store) -> None:
        grid = Grid.create(store, 1, ("a",))
        watches = [store.watch(grid.ref, scope) for scope in (Scope(), Scope("z", 0), NO_CELLS)]
        grid.cancel()
        for watch in watches:
            assert read_until(watch, lambda batch: batch.job_changed).states == []
            watch.close()

    def test_a_watch_reports_a_decided_latch_as_a_changed_job_record(self, store: Store) -> None:
        grid = Grid.create(store, 1, ("a",))
        watch = store.watch(grid.ref, NO_CELLS)
        grid.run("a", 0)
        read_until(watch, lambda batch: batch.job_changed)
        assert grid.job.settled
        watch.close()

    def test_a_watch_of_the_job_record_alone_reports_no_cells(self, store: Store) -> None:
        grid = Grid.create(store, 1, ("a",))
        watch = store.watch(grid.ref, NO_CELLS)
        grid.write("a", 0, 5)
        grid.run("success", CALLBACK_ROW)
        grid.tombstone()
        assert read_until(watch, lambda batch: batch.job_changed).states == []
        watch.close()

    def test_every_read_of_a_watch_of_a_deleted_job_raises_job_not_found(self, store: Store) -> None:
        grid = Grid.create(store)
        watch = store.watch(grid.ref, Scope())
        store.delete_job(grid.job)
        Grid.create(store).write("a", 0, FINISHED)
        for _ in range(2):
            with pytest.raises(JobNotFound):
                while True:
                    assert watch.read(PATIENCE).states == []
        watch.close()

    def test_a_deletion_wakes_a_waiting_reader(self, store: Store) -> None:
        grid = Grid.create(store)
        watch = store.watch(grid.ref, NO_CELLS)
        found = threading.Event()

        def read() -> None:
            with pytest.raises(JobNotFound):
                while True:
                    watch.read(600)
            found.set()

        reader = threading.Thread(target=read)
        reader.start()
        grid.delete()
        assert found.wait(PATIENCE)
        reader.join()
        watch.close()

    def test_watches_are_independent_of_one_another(self, store: Store) -> None:
        grid = Grid.create(store)
        watches = [store.watch(grid.ref, Scope()) for _ in range(5)]
        watches[0].close()
        grid.write("a", 0, 5)
        read_until(watches[1], lambda batch: bool(batch.states))
        watches[1].close()
        grid.write("a", 1, 5)
        for watch in watches[2:]:
            batch = read_until(watch, lambda batch: len(batch.states) == 2)
            assert sorted(cells(batch)) == [("a", 0, 1), ("a", 1, 1)]
            watch.close()

    def test_a_watch_reports_changes_made_through_another_store_object(self, store: Store, other_store: Store) -> None:
        grid = Grid.create(store, 2, ("a",))
        watch = store.watch(grid.ref, Scope())
        other = grid.seen_by(other_store)
        other.run("a", 0)
        read_until(watch, lambda batch: ("a", 0, 2) in cells(batch))
        other.run("a", 1)
        read_until(watch, lambda batch: ("a", 1, 2) in cells(batch) and batch.job_changed)
        assert grid.decided == {"success", "settled"}
        other_store.delete_job(other.job)
        with pytest.raises(JobNotFound):
            while True:
                watch.read(PATIENCE)
        watch.close()
