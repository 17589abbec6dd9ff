"""Garbage collection on every store, with other changes between any two of its steps."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from between import Between

from celery_statemanager import ConfigurationError, JobNotFound, Manager, Store, collect_garbage, open_store
from celery_statemanager.garbage import Act, GarbageReport, Skip
from celery_statemanager.leases import MOST_BYTES, Received, Report, cell_name
from celery_statemanager.models import SCHEMA_VERSION
from celery_statemanager.records import ClaimRequest, Flow
from celery_statemanager.stores import FullStore
from celery_statemanager.stores.firestore.timings import Timings
from celery_statemanager.testing import FakeClock, StoreFactory, WrappedStore
from celery_statemanager.testing.kit import PATIENCE, Grid, every_job, purge
from celery_statemanager.testing.load import in_threads

HOUR = 3600.0
DELETE = {"tombstone_age": 0.002, "delete_age": 0.004}
TOMBSTONE = {"tombstone_age": 0.002, "delete_age": HOUR}
LATER = {"tombstone_age": HOUR, "delete_age": 2 * HOUR}


@pytest.fixture
def timings() -> Timings:
    """Make Firestore store the activity of each write; its delay of up to 45 s is too long for these tests."""
    return Timings(poll_every=0.05, activity_every=0.0)


def wait_until_idle(store: Store, *grids: Grid) -> None:
    """Wait until jobs are older than the ages of these tests."""
    deadline = time.monotonic() + PATIENCE
    while any(store.now() - grid.job.last_activity <= 5_000 for grid in grids):
        assert time.monotonic() < deadline


def exists(grid: Grid) -> bool:
    try:
        return grid.job.incarnation == grid.ref.incarnation
    except JobNotFound:
        return False


def create_idle_job(store: Store, name: str = "job", **callbacks: str) -> Grid:
    grid = Grid.create(store, 2, ("a",), job_id=name, **callbacks)
    grid.write("a", 0, 5)
    wait_until_idle(store, grid)
    return grid


def at_every_step(
    store: Store,
    ages: dict[str, float],
    action: Callable[[Grid], object],
    check: Callable[[Grid, GarbageReport], object],
    **callbacks: str,
) -> None:
    """Collect a new idle job repeatedly, each time with the action before a later call to the store.

    The first call is left out: it reads the time that idleness refers to, so a job written before it counts as idle.
    """
    for number in range(1, 100):
        grid = create_idle_job(store, f"job {number}", **callbacks)
        between = Between(store, number, lambda grid=grid: action(grid) if exists(grid) else None)
        report = collect_garbage(between, **ages)
        if between.left >= 0:
            assert number > 4
            return
        check(grid, report)
        if exists(grid):
            grid.delete()
    raise AssertionError("the number of steps is not bounded")


def test_an_idle_job_is_tombstoned_then_deleted_completely(store: Store) -> None:
    grid = create_idle_job(store)
    assert collect_garbage(store, **LATER) == GarbageReport()
    reported: list[tuple[str, object]] = []
    report = collect_garbage(store, **TOMBSTONE, tell=lambda job, what: reported.append((job.job_id, what)))
    assert report == GarbageReport(scanned=1, tombstoned=1)
    assert reported == [("job", Act.TOMBSTONED)]
    assert grid.state("a", 0).status == 5
    assert collect_garbage(store, **TOMBSTONE) == GarbageReport(scanned=1)
    report = collect_garbage(store, **DELETE)
    assert (report.deleted, report.tombstoned, report.revived, report.skipped) == (1, 0, 0, {})
    assert not exists(grid)
    assert purge(store) == 0


@pytest.mark.parametrize("tags", [("a",), None])
def test_settled_jobs_and_jobs_without_a_plan_are_deleted_without_a_tombstone(store: Store, tags: Any) -> None:
    grid = Grid.create(store, 1, tags)
    grid.run("a", 0)
    wait_until_idle(store, grid)
    assert collect_garbage(store, **DELETE).deleted == 1
    assert not exists(grid)


def test_a_tombstoned_job_that_is_written_to_is_revived(store: Store) -> None:
    alive, asleep = create_idle_job(store, "alive"), create_idle_job(store, "asleep")
    assert collect_garbage(store, **TOMBSTONE).tombstoned == 2
    alive.write("a", 1, 6)
    assert collect_garbage(store, **LATER) == GarbageReport(scanned=2, revived=1)
    assert alive.job.tombstoned_at is None
    assert asleep.job.tombstoned_at is not None


def test_a_dry_run_writes_nothing_and_reports_what_it_would_do(store: Store) -> None:
    grids = {name: create_idle_job(store, name) for name in ("revived", "tombstoned")}
    collect_garbage(store, **TOMBSTONE)
    grids["tombstoned"].update(lambda job: replace(job, tombstoned_at=None))
    grids["revived"].write("a", 1, 6)

    class ReadOnly(WrappedStore):
        def calling(self, method: str, call: Callable[[], Any]) -> Any:
            assert method in {"list_jobs", "list_workers", "list_open_attempts", "now", "get_job"}, method
            return call()

    before = list(every_job(store))
    assert collect_garbage(ReadOnly(store), **LATER, dry_run=True).revived == 1
    wait_until_idle(store, *grids.values())
    report = collect_garbage(ReadOnly(store), **TOMBSTONE, dry_run=True)
    assert (report.tombstoned, report.deleted) == (1, 0)
    assert collect_garbage(ReadOnly(store), **DELETE, dry_run=True).deleted == 2
    assert list(every_job(store)) == before


@pytest.mark.parametrize("ages", [TOMBSTONE, DELETE], ids=["tombstone", "delete"])
def test_a_job_written_to_between_any_two_steps_survives_and_is_listed(store: Store, ages: dict[str, float]) -> None:
    written: set[Grid] = set()
    reasons: set[str] = set()

    def write(grid: Grid) -> None:
        grid.write("a", 1, 7)
        written.add(grid)

    def check(grid: Grid, report: GarbageReport) -> None:
        reasons.update(report.skipped)
        if grid in written:
            collect_garbage(store, **LATER)
            assert grid.state("a", 1).status == 7
            assert grid.job.tombstoned_at is None

    at_every_step(store, ages, write, check)
    assert len(written) > 4
    assert reasons == {Skip.CHANGED.value}


def test_a_callback_that_becomes_due_between_any_two_steps_keeps_the_job(store: Store) -> None:
    finished: set[Grid] = set()

    def finish(grid: Grid) -> None:
        grid.run("a", 0)
        grid.run("a", 1)
        finished.add(grid)

    def check(grid: Grid, _: GarbageReport) -> None:
        if grid in finished:
            assert grid.job.latches["success"].due
            wait_until_idle(store, grid)
            assert collect_garbage(store, **DELETE).skipped == {Skip.CALLBACK.value: 1}

    at_every_step(store, DELETE, finish, check, success="call")
    assert len(finished) > 4


def test_a_second_run_between_any_two_steps_deletes_the_job_once(store: Store) -> None:
    other: list[GarbageReport] = []

    def check(grid: Grid, report: GarbageReport) -> None:
        assert not exists(grid)
        assert report.deleted + sum(each.deleted for each in other) == 1
        other.clear()

    at_every_step(store, DELETE, lambda _: other.append(collect_garbage(store, **DELETE)), check)
    assert purge(store) == 0


def test_concurrent_runs_act_on_each_job_once(store: Store) -> None:
    grids = [create_idle_job(store, f"job {number}") for number in range(12)]
    for ages, act in ((TOMBSTONE, "tombstoned"), (DELETE, "deleted")):
        reports = in_threads(3, lambda _, ages=ages: collect_garbage(store, **ages))
        assert sum(getattr(report, act) for report in reports) == len(grids)
        assert {reason for report in reports for reason in report.skipped} <= {Skip.CHANGED.value}
    assert list(every_job(store)) == []
    assert purge(store) == 0


def test_a_run_reads_only_the_records_of_idle_jobs(store: Store) -> None:
    old = create_idle_job(store, "old")
    busy = [Grid.create(store, 1, job_id=f"busy {number}") for number in range(30)]
    between = (old.job.last_activity + busy[0].job.last_activity) // 2
    now = store.now()
    read: list[str] = []

    class Reading(WrappedStore):
        def calling(self, method: str, call: Callable[[], Any]) -> Any:
            assert method not in {"list_states", "get_cell", "column_summaries", "lowest", "watch"}
            answer = call()
            if method == "list_jobs":
                read.extend(job.job_id for job in answer.jobs)
            return now if method == "now" else answer

    age = (now - between) / 1_000_000
    assert collect_garbage(Reading(store), tombstone_age=age, delete_age=HOUR).tombstoned == 1
    assert read == ["old"]


def test_an_interrupted_run_is_completed_by_the_next_one(store: Store) -> None:
    class InterruptedRunError(Exception):
        pass

    def interrupt(_: Grid) -> None:
        raise InterruptedRunError

    for number in range(100):
        grid = create_idle_job(store, f"job {number}")
        between = Between(store, number, lambda grid=grid: interrupt(grid))
        try:
            collect_garbage(between, **DELETE)
        except InterruptedRunError:
            collect_garbage(store, **DELETE)
        assert not exists(grid)
        assert purge(store) == 0
        if between.left >= 0:
            return


def _running(grid: Grid) -> Report:
    return Report(running=[cell_name(grid.ref, "a", 1)])


def _received(grid: Grid) -> Report:
    return Report(received=[Received(grid.ref, "a", 1, None)])


def _no_room(_: Grid) -> Report:
    return Report(pending=["x" * MOST_BYTES])


def _nothing(grid: Grid) -> Report:
    grid.begin("a", 1, owner="w1")
    return Report()


@pytest.mark.parametrize("report_of", [_running, _received, _no_room, _nothing])
def test_a_job_of_a_live_worker_is_kept_until_the_worker_is_dead(
    store: Store, report_of: Callable[[Grid], Report]
) -> None:
    grid = create_idle_job(store)
    report = report_of(grid)
    wait_until_idle(store, grid)
    store.put_worker("w1", report.to_json(), HOUR)
    assert collect_garbage(store, **DELETE).skipped == {Skip.RUNNING.value: 1}
    assert grid.job.tombstoned_at is None
    store.put_worker("w1", report.to_json(), 0)
    assert collect_garbage(store, **DELETE).deleted == 1


def test_a_job_with_messages_to_publish_is_kept(store: FullStore) -> None:
    grid = Grid.submitted(store, 3, published=2)
    wait_until_idle(store, grid)
    assert collect_garbage(store, **DELETE).skipped == {Skip.PUBLISHING.value: 1}
    store.claim(grid.ref, ClaimRequest(publisher="dead", limit=1))
    assert collect_garbage(store, **DELETE).skipped == {Skip.PUBLISHING.value: 1}, "the last row may be unpublished"
    store.claim(grid.ref, ClaimRequest(publisher="dead", limit=0))
    wait_until_idle(store, grid)
    assert collect_garbage(store, **DELETE).deleted == 1


def test_a_cancelled_job_with_unpublished_messages_is_collected(store: FullStore) -> None:
    grid = Grid.submitted(store, 3, published=1, flow=Flow(1))
    grid.cancel()
    wait_until_idle(store, grid)
    assert collect_garbage(store, **DELETE).deleted == 1
    assert store.get_block(grid.ref, 0) is None


def test_a_job_of_a_newer_release_is_kept_and_rejected_when_opened(store: Store) -> None:
    grid = create_idle_job(store)
    grid.update(lambda job: replace(job, schema_version=job.schema_version + 1))
    assert collect_garbage(store, **DELETE).skipped == {Skip.NEWER.value: 1}
    text = rf"newer release \(schema {SCHEMA_VERSION + 1}, this release supports {SCHEMA_VERSION}\): upgrade"
    with pytest.raises(ConfigurationError, match=text):
        Manager.open(store, "job")


def test_many_jobs_are_collected_page_by_page(store: Store) -> None:
    grids = [Grid.create(store, 1, job_id=f"job {number}") for number in range(120)]
    wait_until_idle(store, *grids[-1:])
    assert collect_garbage(store, **TOMBSTONE).tombstoned == 120
    assert collect_garbage(store, **DELETE).deleted == 120
    assert list(every_job(store)) == []


def test_ages_are_counted_from_the_last_write_by_the_stores_clock(store_factory: StoreFactory) -> None:
    if not store_factory.takes_clock:
        pytest.skip("its clock is the server's")
    clock = FakeClock()
    with store_factory.make(clock=clock) as store:
        grid = Grid.create(store, 1)
        clock.advance(20 * 86_400)
        grid.write("a", 0, 5)
        clock.advance(29 * 86_400)
        assert not collect_garbage(store, tombstone_age="30d", delete_age="90d")
        clock.advance(2 * 86_400)
        assert collect_garbage(store, tombstone_age="30d", delete_age="90d").tombstoned == 1
        clock.advance(58 * 86_400)
        assert not collect_garbage(store, tombstone_age="30d", delete_age="90d")
        clock.advance(2 * 86_400)
        assert collect_garbage(store, tombstone_age="30d", delete_age="90d").deleted == 1


@pytest.mark.parametrize(
    ("ages", "message"),
    [
        (("30d", "30d"), "the delete age (30d) must be longer than the tombstone age (30d)"),
        (("4w", 3600), "the delete age (1h) must be longer than the tombstone age (28d)"),
        (("30", "90d"), "tombstone age: not a duration: '30' (no unit after 30)"),
        (("30d", None), "delete age: a duration is a text, a number of seconds or a timedelta, not None"),
    ],
)
def test_invalid_ages_are_rejected(ages: tuple[Any, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        collect_garbage(WrappedStore(None), tombstone_age=ages[0], delete_age=ages[1])  # type: ignore[arg-type]
    assert str(raised.value).startswith(message)


CHILD = """
import sys
from celery_statemanager import collect_garbage, open_store
from celery_statemanager.testing import WrappedStore

class PrintingStore(WrappedStore):
    def purge(self, limit):
        removed = super().purge(min(limit, 50))
        print(removed, flush=True)
        return removed

collect_garbage(PrintingStore(open_store(sys.argv[1])), tombstone_age=0.002, delete_age=0.004)
"""


def test_the_next_run_removes_what_a_killed_process_left(store: Store, store_factory: StoreFactory) -> None:
    if store_factory.url is None:
        pytest.skip("its data exist only in one store object")
    grid = Grid.create(store, 400)
    for row in range(400):
        for tag in ("a", "b", "c") if "firestore" not in store_factory.url else ("a",):
            grid.write(tag, row, 5)
    wait_until_idle(store, grid)
    child = subprocess.Popen([sys.executable, "-c", CHILD, store_factory.url], stdout=subprocess.PIPE)
    assert [int(child.stdout.readline()) > 0 for _ in range(2)] == [False, True]  # no earlier garbage, then the job's
    child.kill()
    child.communicate(timeout=PATIENCE)
    assert not exists(grid)
    successor = Grid.create(store, 400)
    successor.write("a", 3, 6)
    collect_garbage(store, **LATER)
    assert purge(store) == 0
    assert [state.status for state in successor.states()] == [6]


def test_each_call_of_a_collection_removes_a_bounded_number_of_rows() -> None:
    limits = []

    class Recorder(WrappedStore):
        def purge(self, limit: int = 0) -> int:
            limits.append(limit)
            return super().purge(limit)

    collect_garbage(Recorder(open_store("memory://")), **LATER)
    assert limits
    assert max(limits) <= 10_000
