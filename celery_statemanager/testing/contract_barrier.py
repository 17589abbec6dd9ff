"""Barriers (rule R8)."""

from __future__ import annotations

import threading

import pytest

from celery_statemanager.errors import JobNotFound, SynchronizeFailed, SynchronizeTimeout
from celery_statemanager.records import Delivery
from celery_statemanager.stores.base import Store
from celery_statemanager.testing.kit import CANCELLED, FAILED, FINISHED, PATIENCE, Grid, smoke

CLIMB = [(row, status) for status in (1, 5, 10, 15) for row in (2, 0, 1)]


class BarrierContract:
    """Tests of barriers."""

    def test_a_barrier_returns_one_state_per_expected_row(self, store: Store) -> None:
        grid = Grid.create(store, 4, {"a": [0, 2], "b": [1, 3]})
        grid.write("a", 0, 50)
        grid.write("a", 2, 99)
        grid.write("a", 1, -5)
        states = grid.manager().synchronize("a", 50, timeout=PATIENCE)
        assert [(state.task_index, state.status) for state in states] == [(0, 50), (2, 99)]
        assert [state.task_index for state in grid.manager().synchronize("b", 0, timeout=0)] == [1, 3]

    @smoke
    def test_a_barrier_waits_for_the_slowest_row(self, store: Store) -> None:
        grid = Grid.create(store, 3)
        waiting = threading.Thread(target=lambda: [grid.write("a", row, status) for row, status in CLIMB])
        waiting.start()
        states = grid.manager().synchronize("a", 10, timeout=PATIENCE)
        waiting.join()
        assert min(state.status for state in states) >= 10
        assert len(states) == 3

    def test_a_timeout_reports_the_states_and_the_missing_rows(self, store: Store) -> None:
        grid = Grid.create(store, 6)
        for row, status in ((0, 10), (1, 9), (4, FINISHED)):
            grid.write("a", row, status)
        with pytest.raises(SynchronizeTimeout) as late:
            grid.manager().synchronize("a", 10, timeout=0.02)
        assert late.value.missing == "1-3,5"
        assert [state.status for state in late.value.states] == [10, 9, 0, 0, FINISHED, 0]
        assert late.value.timeout == 0.02
        assert "1-3,5" in str(late.value)
        assert isinstance(late.value, TimeoutError)

    def test_a_failed_row_ends_a_barrier_at_once(self, store: Store) -> None:
        grid = Grid.create(store, 3, ("a", "b"))
        grid.run("a", 1, -42, message="bad disk")
        for tag, text in (("a", "bad disk"), ("b", "not run: stage 'a' failed: bad disk")):
            with pytest.raises(SynchronizeFailed) as failed:
                grid.manager().synchronize(tag, 10)
            assert (failed.value.state.task_index, failed.value.state.message) == (1, text)

    def test_a_row_that_fails_during_the_wait_ends_the_barrier(self, store: Store) -> None:
        grid = Grid.create(store, 2)
        writer = threading.Thread(target=lambda: grid.write("a", 1, FAILED))
        writer.start()
        with pytest.raises(SynchronizeFailed):
            grid.manager().synchronize("a", 10, timeout=PATIENCE)
        writer.join()

    def test_without_fail_fast_a_barrier_waits_for_a_failed_row_to_recover(self, store: Store) -> None:
        grid = Grid.create(store, 2)
        grid.write("a", 0, 10)
        grid.run("a", 1, FAILED)
        with pytest.raises(SynchronizeTimeout) as late:
            grid.manager().synchronize("a", 10, timeout=0.02, fail_fast=False)
        assert late.value.missing == "1"
        recovery = threading.Thread(target=lambda: (grid.begin("a", 1, delivery=Delivery(0, 0, 1)), grid.end("a", 1)))
        recovery.start()
        states = grid.manager().synchronize("a", 10, timeout=PATIENCE, fail_fast=False)
        recovery.join()
        assert [state.status for state in states] == [10, FINISHED]

    def test_a_cancelled_or_deleted_job_ends_a_barrier(self, store: Store) -> None:
        grid = Grid.create(store, 2, ("a",))
        canceller = threading.Thread(target=grid.cancel)
        canceller.start()
        with pytest.raises(SynchronizeFailed) as failed:
            grid.manager().synchronize("a", 10, timeout=PATIENCE)
        canceller.join()
        assert failed.value.state.status == CANCELLED
        other = Grid.create(store, 2, job_id="other")
        manager = other.manager()
        deleter = threading.Thread(target=other.delete)
        deleter.start()
        with pytest.raises(JobNotFound):
            manager.synchronize("a", 10, timeout=PATIENCE)
        deleter.join()
