"""Worker records, open attempts and due jobs, as the sweep reads them (rule R16)."""

from __future__ import annotations

import time
from collections.abc import Iterator

from celery_statemanager.models import Status
from celery_statemanager.records import CALLBACK_ROW, OpenAttempt, Verdict, When
from celery_statemanager.stores.capabilities import WorkerRegistry
from celery_statemanager.testing.contract_fixtures import ContractFixtures
from celery_statemanager.testing.kit import FAILED, FINISHED, PATIENCE, FakeClock, Grid, every_job, smoke


class WorkerRegistryContract(ContractFixtures):
    """Tests of worker records, open attempts and due jobs."""

    def test_a_worker_record_is_stored_with_a_lease_from_now(self, store: WorkerRegistry) -> None:
        before = store.now()
        store.put_worker("w 1@höst", '{"body":"☃"}', 30)
        (record,) = store.list_workers()
        assert (record.worker_id, record.body) == ("w 1@höst", '{"body":"☃"}')
        assert before <= record.renewed_at <= store.now()
        assert record.lease_until - record.renewed_at == 30_000_000

    def test_a_worker_record_of_the_maximum_size_is_stored_whole(self, store: WorkerRegistry) -> None:
        body = "☃" * 270_000  # about 800 KiB, more than ``leases.MOST_BYTES``
        store.put_worker("w", body, 30)
        assert [record.body for record in store.list_workers()] == [body]

    def test_a_renewal_replaces_the_record(self, store: WorkerRegistry) -> None:
        store.put_worker("w", "one", 10)
        (first,) = store.list_workers()
        store.put_worker("w", "two", 20.5)
        (second,) = store.list_workers()
        assert second.body == "two"
        assert second.renewed_at >= first.renewed_at
        assert second.lease_until - second.renewed_at == 20_500_000

    def test_dead_workers_are_listed_until_they_are_dropped(self, store: WorkerRegistry) -> None:
        for worker in ("dead", "alive", "ended"):
            store.put_worker(worker, worker, 60 if worker == "alive" else 0)
        records = {record.worker_id: record for record in store.list_workers()}
        assert {worker for worker, record in records.items() if record.lease_until > store.now()} == {"alive"}
        assert len(records) == 3
        for _ in range(2):
            store.drop_worker("dead")
        assert {record.worker_id for record in store.list_workers()} == {"alive", "ended"}

    def test_get_worker_returns_one_record(self, store: WorkerRegistry) -> None:
        assert store.get_worker("w 1@höst") is None
        for worker in ("w 1@höst", "w", "~other"):
            store.put_worker(worker, f"body of {worker}", 30)
        records = {record.worker_id: record for record in store.list_workers()}
        assert {worker: store.get_worker(worker) for worker in records} == records
        store.drop_worker("w")
        assert store.get_worker("w") is None

    def test_a_lease_expires_by_the_stores_clock(self, store: WorkerRegistry) -> None:
        store.put_worker("w", "", 0.05)
        (record,) = store.list_workers()
        deadline = time.monotonic() + PATIENCE
        while store.now() < record.lease_until:
            assert time.monotonic() < deadline
        assert list(store.list_workers()) == [record]

    def test_a_lease_expires_by_the_given_clock(self, clocked_store: WorkerRegistry, clock: FakeClock) -> None:
        clocked_store.put_worker("w", "", 30)
        (record,) = clocked_store.list_workers()
        assert record.renewed_at == clocked_store.now() == round(clock() * 1_000_000)
        clock.advance(29)
        assert record.lease_until > clocked_store.now()
        clock.advance(2)
        assert record.lease_until < clocked_store.now()

    def test_an_acquired_lease_belongs_to_its_holder_until_it_expires(self, store: WorkerRegistry) -> None:
        assert store.try_acquire("lease", "first", 0.2)
        assert store.try_acquire("lease", "first", 30)
        assert not store.try_acquire("lease", "second", 30)
        assert [each.body for each in store.list_workers()] == ["first"]
        assert store.try_acquire("another", "second", 30)
        store.put_worker("lease", "first", 0)
        assert store.try_acquire("lease", "second", 30)
        assert not store.try_acquire("lease", "first", 30)

    def test_an_acquired_lease_expires_by_the_stores_clock(
        self, clocked_store: WorkerRegistry, clock: FakeClock
    ) -> None:
        assert clocked_store.try_acquire("lease", "first", 30)
        clock.advance(29)
        assert not clocked_store.try_acquire("lease", "second", 30)
        clock.advance(2)
        assert clocked_store.try_acquire("lease", "second", 30)

    def test_altering_a_worker_record_does_not_alter_the_stored_one(self, store: WorkerRegistry) -> None:
        store.put_worker("w", "body", 10)
        next(store.list_workers()).body = "bent"
        assert next(store.list_workers()).body == "body"

    @smoke
    def test_open_attempts_that_have_an_owner_are_listed(self, store: WorkerRegistry) -> None:
        grids = [
            Grid.create(store, 3, ("a",), job_id=name, run_token=token) for name, token in (("x", None), ("y", "1"))
        ]
        assert list(store.list_open_attempts()) == []
        grids[0].begin("a", 0, owner="w1", kept="msg")
        grids[0].begin("other", 2, owner="w1")
        grids[1].begin("a", 1, owner="w2")
        grids[1].begin("failure", CALLBACK_ROW, owner="w2")
        grids[1].begin("a", 2)
        found = sorted(store.list_open_attempts(), key=lambda each: (each.ref.key.job_id, each.tag))
        assert found == [
            OpenAttempt(grids[0].ref, "a", 0, grids[0].cell("a", 0)),
            OpenAttempt(grids[0].ref, "other", 2, grids[0].cell("other", 2)),
            OpenAttempt(grids[1].ref, "a", 1, grids[1].cell("a", 1)),
            OpenAttempt(grids[1].ref, "failure", CALLBACK_ROW, grids[1].cell("failure", CALLBACK_ROW)),
        ]

    def test_an_attempt_that_awaits_its_delivery_is_listed_until_the_next_attempt_ends(
        self, store: WorkerRegistry
    ) -> None:
        grid = Grid.create(store, 1, ("a",))
        grid.begin("a", 0, owner="w1", kept="msg")
        grid.write("a", 0, 1, attempt=1, ends_attempt=True, awaits_delivery=True)
        grid.write("a", 0, 40, message="of a Manager")
        (found,) = store.list_open_attempts()
        assert (found.cell.open, found.cell.owner, found.cell.kept) == (False, "w1", "msg")
        assert grid.begin("a", 0, owner="w2").verdict is Verdict.BEGUN
        assert [each.cell.owner for each in store.list_open_attempts()] == ["w2"]
        grid.write("a", 0, 1, attempt=2, ends_attempt=True, awaits_delivery=True)
        grid.write("a", 0, int(Status.REJECTED), when=When.IDLE)
        assert list(store.list_open_attempts()) == []

    def test_a_cancelled_attempt_that_awaited_its_delivery_is_not_listed(self, store: WorkerRegistry) -> None:
        grid = Grid.create(store, 1, ("a",))
        grid.begin("a", 0, owner="w1")
        grid.write("a", 0, 1, attempt=1, ends_attempt=True, awaits_delivery=True)
        grid.cancel("enough")
        assert grid.begin("a", 0, owner="w2").verdict is Verdict.CANCELLED
        assert list(store.list_open_attempts()) == []

    def test_an_attempt_is_listed_until_it_is_closed_or_taken_over(self, store: WorkerRegistry) -> None:
        grid = Grid.create(store, 3, ("a",))
        for row in range(3):
            grid.begin("a", row, owner="w")
        grid.write("a", 0, 50, attempt=1)
        grid.end("a", 1)
        grid.begin("a", 2, takes_over=True)
        (found,) = store.list_open_attempts()
        assert (found.task_index, found.cell) == (0, grid.cell("a", 0))
        grid.begin("a", 0, supersedes=1, owner="w2")
        assert [each.cell.owner for each in store.list_open_attempts()] == ["w2"]
        grid.write("a", 0, 0, attempt=2, ends_attempt=True, presumed_dead=True)
        assert list(store.list_open_attempts()) == [], "also if the cell keeps its owner"

    def test_superseding_an_attempt_that_its_worker_ended_does_not_count_as_a_loss(self, store: WorkerRegistry) -> None:
        grid = Grid.create(store)
        grid.begin("a", 0, owner="w1")
        reply = grid.begin("a", 0, supersedes=1, counts_as_loss=False, owner="w2")
        assert (reply.verdict, reply.cell.attempt, reply.cell.losses) == (Verdict.BEGUN, 2, 0)
        late = grid.request("a", 0, supersedes=2, counts_as_loss=False, owner="w3")
        assert grid.write("a", 0, 40, begin=late).cell.losses == 0
        assert grid.begin("a", 0, supersedes=3, owner="w4").cell.losses == 1

    def test_many_open_attempts_are_all_listed(self, store: WorkerRegistry) -> None:
        grid = Grid.create(store, 300)
        for row in range(300):
            grid.begin("a", row, owner=f"w{row % 7}")
        assert sorted(each.task_index for each in store.list_open_attempts()) == list(range(300))

    def test_an_attempt_begun_by_a_write_is_listed_while_it_is_open(self, store: WorkerRegistry) -> None:
        grid = Grid.create(store)
        cell = grid.write("a", 0, 40, begin=grid.request("a", 0, owner="w", kept="msg")).cell
        grid.write("a", 1, FINISHED, begin=grid.request("a", 1, owner="w"), ends_attempt=True)
        assert [attempt.cell for attempt in store.list_open_attempts()] == [cell]

    def test_a_deleted_job_leaves_no_open_attempts(self, store: WorkerRegistry) -> None:
        grid = Grid.create(store, 2, ("a",))
        grid.begin("a", 0, owner="worker")
        assert [attempt.ref for attempt in store.list_open_attempts()] == [grid.ref]
        grid.delete()
        assert list(store.list_open_attempts()) == []

    def test_workers_are_listed_lazily_and_once_each(self, store: WorkerRegistry) -> None:
        names = [f"w {number}" for number in range(130)]
        for name in names:
            store.put_worker(name, f"body of {name}", 30)
        records = store.list_workers()
        assert isinstance(records, Iterator)
        assert sorted((each.worker_id, each.body) for each in records) == sorted(
            (name, f"body of {name}") for name in names
        )

    def test_dropping_workers_while_listing_skips_no_other_worker(self, store: WorkerRegistry) -> None:
        names = {f"w {number}" for number in range(130)}
        for name in names:
            store.put_worker(name, "x" * 100, 0)
        for record in store.list_workers():
            names.remove(record.worker_id)
            store.drop_worker(record.worker_id)
        assert names == set()
        assert list(store.list_workers()) == []

    def test_ending_attempts_while_listing_skips_no_other_attempt(self, store: WorkerRegistry) -> None:
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

    def test_due_jobs_that_stay_due_do_not_hide_other_due_jobs(self, store: WorkerRegistry) -> None:
        names = [f"job {number}" for number in range(7)]
        for name in names:
            Grid.create(store, 1, ("a",), job_id=name, failure="call").run("a", 0, FAILED)
            Grid.create(store, 1, ("a",), job_id=f"quiet {name}")
        for limit in (1, 3, 7, 100):
            assert sorted(job.job_id for job in every_job(store, limit, due=True)) == names
