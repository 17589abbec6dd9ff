"""Races between processes, simulated by Firestore stores that share only the documents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from firestore_kit import Documents, Spy

from celery_statemanager import JobCancelled, JobNotFound, StoreUnavailable
from celery_statemanager.records import Verdict
from celery_statemanager.stores.firestore import FirestoreAddress, FirestoreStore
from celery_statemanager.stores.firestore.timings import Timings
from celery_statemanager.testing.kit import CANCELLED, FAILED, FINISHED, Grid, every_job, purge


@pytest.fixture
def timings() -> Timings:
    """Return timings that let a process use its cached job during a whole test."""
    return Timings(job_memory=3_600.0)


@pytest.fixture
def store(address: FirestoreAddress, timings: Timings) -> Iterator[FirestoreStore]:
    with FirestoreStore(address, timings=timings) as store:
        yield store


@pytest.fixture
def other(address: FirestoreAddress, spy: Spy, timings: Timings) -> Iterator[FirestoreStore]:
    """Yield the store of another process, with a cache of its own."""
    with spy.store(address, timings=timings) as other:
        yield other


def test_a_begin_after_an_unseen_cancellation_ends_as_cancelled(store: FirestoreStore, other: FirestoreStore) -> None:
    grid = Grid.create(store, 2, ("a", "b"))
    elsewhere = grid.seen_by(other)
    assert elsewhere.job.cancelled is None
    assert grid.cancel("enough") == ("settled",)
    reply = elsewhere.begin("a", 0, owner="w")
    assert reply.verdict is Verdict.CANCELLED
    assert (reply.cell.status, reply.cell.message, reply.cell.final) == (CANCELLED, "enough", True)
    assert list(store.list_open_attempts()) == []
    assert elsewhere.begin("a", 1).verdict is Verdict.CLOSED
    assert grid.cell("a", 1).version == 0


def test_a_late_begin_after_an_unseen_cancellation_is_undone(store: FirestoreStore, other: FirestoreStore) -> None:
    grid = Grid.create(store, 2, ("a", "b"))
    elsewhere = grid.seen_by(other)
    assert elsewhere.job.cancelled is None
    grid.cancel("enough")
    with pytest.raises(JobCancelled, match="enough"):
        elsewhere.write("a", 0, 50, begin=elsewhere.request("a", 0, owner="w"))
    assert (grid.cell("a", 0).status, grid.cell("a", 0).open) == (CANCELLED, False)


def test_the_end_of_the_last_open_cell_settles_a_job_cancelled_by_another_process(
    store: FirestoreStore, other: FirestoreStore
) -> None:
    grid = Grid.create(store, 2, ("a",))
    elsewhere = grid.seen_by(other)
    elsewhere.begin("a", 0)
    assert grid.cancel() == ()
    assert elsewhere.end("a", 0).decided == ("settled",)
    assert grid.decided == {"settled"}


def test_a_writer_sees_a_cancellation_when_its_cached_job_expires(
    address: FirestoreAddress, store: FirestoreStore, other: FirestoreStore
) -> None:
    cached, expired = (Grid.create(store, 2, ("a",), job_id=name) for name in ("cached", "expired"))
    with FirestoreStore(address, timings=Timings(job_memory=0.0)) as uncached:
        with_cache, without_cache = cached.seen_by(other), expired.seen_by(uncached)
        for grid, elsewhere in ((cached, with_cache), (expired, without_cache)):
            elsewhere.begin("a", 0)
            grid.cancel("enough")
        assert with_cache.write("a", 0, 50, attempt=1).cell.version == 2
        with pytest.raises(JobCancelled, match="enough"):
            without_cache.write("a", 0, 50, attempt=1)


def test_a_write_after_an_unseen_deletion_stays_invisible_and_is_purged(
    address: FirestoreAddress, store: FirestoreStore, other: FirestoreStore
) -> None:
    grid = Grid.create(store, 2, ("a",))
    elsewhere = grid.seen_by(other)
    elsewhere.write("a", 0, 5)
    store.delete_job(grid.job)
    purge(store)
    elsewhere.write("a", 1, 5)
    with pytest.raises(JobNotFound):
        elsewhere.begin("a", 0)
    successor = Grid.create(store, 2, ("a",))
    assert (successor.states(), successor.manager().summary().not_started) == ([], 2)
    assert successor.write("a", 1, 6).cell.version == 1
    purge(store)
    assert Documents(store).ids("jobs/job/states") == ["a:1"]
    with pytest.raises(JobNotFound):
        elsewhere.end("a", 1, attempt=None)


def test_a_cell_that_begins_again_during_a_decision_prevents_it(
    store: FirestoreStore, other: FirestoreStore, spy: Spy
) -> None:
    grid = Grid.create(store, 2, ("a",))
    grid.run("a", 0, FAILED)
    grid.begin("a", 1)
    elsewhere = grid.seen_by(other)
    begun: list[Verdict] = []

    def begin_again_before_the_claim(method: str, request: Any) -> None:
        names = [write.update.name for write in getattr(request, "writes", ())]
        if method == "Commit" and names and names[0].endswith("/jobs/job") and not begun:
            begun.append(grid.begin("a", 0).verdict)

    spy.lock = type("NoLock", (), {"__enter__": lambda self: None, "__exit__": lambda self, *exc: None})()
    spy.fault = begin_again_before_the_claim
    assert elsewhere.end("a", 1).decided == ()
    assert begun == [Verdict.BEGUN]
    assert grid.decided == {"failure"}
    assert set(grid.end("a", 0).decided) == {"success", "settled"}


@pytest.mark.parametrize("timings", [Timings(job_memory=3_600.0, check_after=-1.0, recheck_after=-1.0)])
def test_the_next_process_makes_the_decision_of_one_that_died(
    store: FirestoreStore, other: FirestoreStore, spy: Spy
) -> None:
    deciders = {
        "repetition": lambda grid: grid.write("a", 0, FINISHED, event_id="end"),
        "delivery": lambda grid: grid.begin("a", 0),
        "change": lambda grid: grid.tombstone(),
        "sweep": lambda grid: list(every_job(store, due=True)),
    }
    for name, decide in deciders.items():
        grid = Grid.create(store, 1, ("a",), job_id=name)
        elsewhere = grid.seen_by(other)
        elsewhere.begin("a", 0)

        def lose_claims(method: str, request: Any, job_id: str = name) -> tuple[str, grpc.StatusCode] | None:
            other._connection.timeout = 0.3  # for the calls after the commit of the cell
            names = [write.update.name for write in getattr(request, "writes", ())]
            return ("before", grpc.StatusCode.UNAVAILABLE) if names and names[0].endswith(f"/jobs/{job_id}") else None

        spy.fault = lose_claims
        with pytest.raises(StoreUnavailable):
            elsewhere.end("a", 0, event_id="end")
        assert (grid.cell("a", 0).status, grid.decided) == (FINISHED, set())
        decide(grid)
        assert grid.decided == {"success", "settled"}
        spy.fault = lambda method, request: None
        other._connection.timeout = 10.0


@pytest.mark.parametrize("timings", [Timings(job_memory=3_600.0, check_after=-1.0)])
def test_running_jobs_are_checked_rarely(store: FirestoreStore, other: FirestoreStore, spy: Spy) -> None:
    for number in range(3):
        Grid.create(store, 1, ("a",), job_id=f"job {number}")
    list(every_job(other, due=True))
    assert spy.calls["RunAggregationQuery"] == 3
    spy.clear()
    list(every_job(other, due=True))
    assert (spy.calls["RunAggregationQuery"], spy.calls["Commit"]) == (0, 0)
