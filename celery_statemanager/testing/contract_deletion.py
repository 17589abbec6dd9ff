"""Tombstones, deletion and incarnations (rule R10)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from celery_statemanager.errors import JobNotFound
from celery_statemanager.manager import Manager
from celery_statemanager.models import Scope
from celery_statemanager.records import Flow
from celery_statemanager.stores.base import Store
from celery_statemanager.testing.kit import PATIENCE, FakeClock, Grid, every_job, purge, smoke

USES: dict[str, Callable[[Grid], object]] = {
    "write": lambda grid: grid.write("a", 0, 5),
    "write an unseen cell": lambda grid: grid.write("new", 1, 5),
    "late begin": lambda grid: grid.write("a", 0, 5, begin=grid.request("a", 0)),
    "begin": lambda grid: grid.begin("a", 1),
    "get_cell": lambda grid: grid.store.get_cell(grid.ref, "a", 0),
    "lowest cell": lambda grid: grid.lowest("a", 0),
    "lowest": lambda grid: grid.lowest(),
    "column_summaries": lambda grid: grid.store.column_summaries(grid.ref),
    "summarize a column": lambda grid: grid.store.column_summaries(grid.ref, "a", indexes=True),
    "list_states": lambda grid: grid.store.list_states(grid.ref, Scope()),
    "watch": lambda grid: grid.store.watch(grid.ref, Scope()),
}


class DeletionContract:
    """Tests of tombstoned, deleted and recreated jobs."""

    def test_a_tombstoned_job_stays_readable_and_writable(self, store: Store) -> None:
        with Manager.create(store, "job", num_tasks=2, task_index=0, tags=("a",)) as manager:
            manager.set_state("a", 5)
            assert manager.tombstone_job() is True
            assert manager.tombstone_job() is False
            assert manager.get_state("a", 0).status == 5
            manager.set_state("a", 6)
            assert Manager.open(store, "job").get_state("a", 0).status == 6
            job = store.get_job(manager.ref.key)
            assert job.tombstoned_at is not None
            assert [each.tombstoned_at for each in every_job(store)] == [job.tombstoned_at]

    @pytest.mark.parametrize("use", USES.values(), ids=USES)
    def test_no_operation_finds_a_deleted_job(self, store: Store, use: Callable[[Grid], object]) -> None:
        grid = Grid.create(store, tags=("a",))
        grid.write("a", 0, 5)
        assert store.delete_job(grid.job)
        with pytest.raises(JobNotFound):
            use(grid)
        purge(store)
        with pytest.raises(JobNotFound):
            use(grid)

    @pytest.mark.parametrize("use", USES.values(), ids=USES)
    @smoke
    def test_a_straggler_of_a_deleted_incarnation_does_not_reach_its_successor(
        self, store: Store, use: Callable[[Grid], object]
    ) -> None:
        straggler = Grid.create(store)
        straggler.write("a", 0, 5)
        store.delete_job(straggler.job)
        successor = Grid.create(store)
        successor.write("a", 1, 7)
        with pytest.raises(JobNotFound):
            use(straggler)
        purge(store)
        assert successor.cell("a", 0).version == 0
        assert [(state.tag, state.task_index, state.status) for state in successor.states()] == [("a", 1, 7)]
        assert successor.lowest().status == 0

    def test_every_method_of_a_manager_of_a_deleted_job_raises_job_not_found(self, store: Store) -> None:
        manager = Manager.create(store, "job", num_tasks=2, task_index=0, tags=("a",))
        manager.set_state("a", 5)
        manager.delete_job()
        Manager.create(store, "job", num_tasks=2)
        for use in (
            lambda: manager.set_state("a", 6),
            lambda: manager.progress("a", 1, 2),
            lambda: manager.begin("a"),
            manager.get_state,
            manager.list_states,
            manager.summary,
            manager.subscribe,
            lambda: manager.synchronize("a", 1, timeout=0),
            manager.tombstone_job,
            manager.delete_job,
        ):
            with pytest.raises(JobNotFound):
                use()
        assert Manager.open(store, "job").list_states() == []

    def test_incarnations_of_one_name_differ(self, store: Store) -> None:
        seen = set()
        for _ in range(5):
            grid = Grid.create(store)
            seen.add(grid.ref.incarnation)
            grid.delete()
        assert len(seen) == 5

    def test_deleting_an_older_incarnation_raises_job_not_found_and_keeps_the_newer_one(self, store: Store) -> None:
        old = Grid.create(store).job
        store.delete_job(old)
        with pytest.raises(JobNotFound):
            store.delete_job(old)
        new = Grid.create(store).job
        with pytest.raises(JobNotFound):
            store.delete_job(old)
        assert store.get_job(new.key) == new

    def test_delete_if_idle_refuses_a_job_that_changed_since_it_was_read(
        self, clocked_store: Store, clock: FakeClock
    ) -> None:
        grid = Grid.create(clocked_store)
        old = grid.job
        clock.advance(3600)
        grid.write("a", 0, 5)
        assert clocked_store.delete_job(old, if_idle=True) is False
        old = grid.job
        grid.tombstone()
        assert clocked_store.delete_job(old, if_idle=True) is False
        assert grid.cell("a", 0).status == 5
        assert clocked_store.delete_job(grid.job, if_idle=True) is True
        with pytest.raises(JobNotFound):
            clocked_store.get_job(old.key)

    def test_a_deletion_hides_all_cells_at_once_and_purge_removes_them_in_batches(self, store: Store) -> None:
        grid = Grid.create(store, 300, ("a", "b"))
        for row in range(300):
            grid.write("a", row, 5)
            grid.write("other", row, 5)
        assert store.delete_job(grid.job)
        with pytest.raises(JobNotFound):
            grid.states()
        fresh = Grid.create(store, 300, ("a", "b"))
        fresh.write("a", 1, 9)
        assert fresh.manager().summary().running == 1
        while store.purge(50):
            fresh.write("a", 1, 9)
        assert [(state.tag, state.task_index) for state in fresh.states()] == [("a", 1)]
        assert store.purge() == 0

    def test_deleting_a_job_does_not_purge_the_garbage_of_other_jobs(self, store: Store) -> None:
        """A store without garbage passes too. One row is allowed for the record of the last deletion."""

        def leave_garbage() -> None:
            for number in range(3):
                other = Grid.create(store, 40, ("a",), job_id=f"other {number}")
                for row in range(40):
                    other.write("a", row, 5)
                assert store.delete_job(other.job)

        leave_garbage()
        expected = purge(store)
        leave_garbage()
        manager = Manager.create(store, "job", num_tasks=5, task_index=0, tags=("a",))
        manager.set_state("a", 5)
        manager.delete_job()
        assert expected <= purge(store) <= expected + 1

    def test_a_deletion_purges_at_most_the_given_number_of_rows(self, store: Store) -> None:
        def filled() -> Grid:
            grid = Grid.create(store, 60, ("a", "b", "c"))
            for row in range(60):
                for tag in ("a", "b", "c"):
                    grid.write(tag, row, 5)
            return grid

        assert store.delete_job(filled().job)
        everything = purge(store)
        assert store.delete_job(filled().job, purge=20)
        rest = purge(store)
        assert rest <= max(everything - 20, 0)
        assert rest > 0 or everything == 0
        assert store.delete_job(filled().job, purge=1_000)
        assert purge(store) <= 1

    def test_a_refused_deletion_removes_nothing(self, store: Store) -> None:
        grid = Grid.create(store)
        old = grid.job
        grid.write("a", 0, 5)
        grid.tombstone()
        assert store.delete_job(old, if_idle=True, purge=100) is False
        assert grid.cell("a", 0).status == 5

    def test_a_deleted_job_is_not_due(self, store: Store) -> None:
        grid = Grid.create(store, 2, ("a",), failure="call")
        grid.run("a", 1, -1)
        assert [job.job_id for job in every_job(store, due=True)] == ["job"]
        grid.delete()
        assert list(every_job(store, due=True)) == []
        assert list(every_job(store)) == []

    def test_deleting_a_run_keeps_the_runs_with_other_tokens(self, store: Store) -> None:
        grids = [Grid.create(store, run_token=token) for token in (None, "1", "2")]
        for grid in grids:
            grid.write("a", 0, 5)
        grids[1].delete()
        assert [grid.state("a", 0).status for grid in (grids[0], grids[2])] == [5, 5]

    def test_a_subscription_of_a_deleted_job_ends(self, store: Store) -> None:
        manager = Manager.create(store, "job", num_tasks=1, task_index=0)
        manager.set_state("a", 5)
        with manager.subscribe() as events:
            assert next(events).state.status == 5
            manager.delete_job()
            Manager.create(store, "job", num_tasks=1, task_index=0).set_state("a", 6)
            assert events.get(PATIENCE) is None
            assert events.closed

    def test_writes_of_cells_do_not_change_the_flow(self, store: Store) -> None:
        grid = Grid.create(store, 1, ("a",))
        grid.update(lambda job: replace(job, flow=Flow(2)))
        grid.run("a", 0)
        assert grid.job.flow == Flow(2)
        assert grid.decided == {"success", "settled"}
