"""Tests of lists (workers, open attempts, due jobs) that are longer than a page and change while they are read."""

from __future__ import annotations

from collections.abc import Iterator

from celery_statemanager.stores.capabilities import WorkerRegistry
from celery_statemanager.testing.kit import FAILED, Grid, every_job


class PagingContract:
    """The rules of lists of any length."""

    def test_workers_are_listed_one_by_one_each_once(self, store: WorkerRegistry) -> None:
        names = [f"w {number}" for number in range(130)]
        for name in names:
            store.put_worker(name, f"body of {name}", 30)
        records = store.list_workers()
        assert isinstance(records, Iterator)
        assert sorted((each.worker_id, each.body) for each in records) == sorted(
            (name, f"body of {name}") for name in names
        )

    def test_workers_that_are_dropped_while_they_are_listed_hide_no_other(self, store: WorkerRegistry) -> None:
        names = {f"w {number}" for number in range(130)}
        for name in names:
            store.put_worker(name, "x" * 100, 0)
        for record in store.list_workers():
            names.remove(record.worker_id)
            store.drop_worker(record.worker_id)
        assert names == set()
        assert list(store.list_workers()) == []

    def test_attempts_that_end_while_they_are_listed_hide_no_other(self, store: WorkerRegistry) -> None:
        grid = Grid.create(store, 320, ("a",))
        for row in range(320):
            grid.begin("a", row, owner=f"w{row % 7}")
        rows = set(range(320))
        for attempt in store.list_open_attempts():
            rows.remove(attempt.task_index)
            grid.end("a", attempt.task_index, attempt=attempt.cell.attempt)
        assert rows == set()
        assert list(store.list_open_attempts()) == []

    def test_open_attempts_of_many_jobs_are_all_listed(self, store: WorkerRegistry) -> None:
        grids = [Grid.create(store, 1, ("a",), job_id=f"job {number:03}") for number in range(330)]
        for grid in grids:
            grid.begin("a", 0, owner="w")
        assert {each.ref for each in store.list_open_attempts()} == {grid.ref for grid in grids}

    def test_due_jobs_that_stay_due_hide_no_other(self, store: WorkerRegistry) -> None:
        names = [f"job {number}" for number in range(7)]
        for name in names:
            Grid.create(store, 1, ("a",), job_id=name, failure="call").run("a", 0, FAILED)
            Grid.create(store, 1, ("a",), job_id=f"quiet {name}")
        for limit in (1, 3, 7, 100):
            assert sorted(job.job_id for job in every_job(store, limit, due=True)) == names
