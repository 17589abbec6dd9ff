"""Sweeps over long lists: entries that cannot be acted on, errors of single entries, and memory."""

from __future__ import annotations

import logging
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from sweep_actions import RecordedActions

from celery_statemanager import Store, StoreContended, StoreError, StoreUnavailable, leases, open_store
from celery_statemanager.explain import explain
from celery_statemanager.leases import Received, Report
from celery_statemanager.liveness import liveness
from celery_statemanager.records import (
    Cell,
    JobRef,
    OpenAttempt,
    WorkerRecord,
    Write,
    WriteReply,
)
from celery_statemanager.stores.wrapped import WrappedStore
from celery_statemanager.sweep import Sweep, SweepReport
from celery_statemanager.testing import FakeClock, FaultyStore
from celery_statemanager.testing.kit import FAILED, Grid

LEASE = 30.0


def sweep(store: Store, actions: RecordedActions) -> SweepReport:
    return Sweep(store, actions, lease=LEASE, max_lost=3).run()


def test_due_jobs_of_another_app_do_not_hide_those_of_this_one(store: Store) -> None:
    """More than a page of them stay due, because that app does not run."""
    for number in range(120):
        Grid.create(store, 1, ("a",), job_id=f"a: other {number:03}", failure="call").run("a", 0, FAILED)
    Grid.create(store, 1, ("a",), job_id="z: mine", failure="call").run("a", 0, FAILED)
    later, actions = AdvancedStore(store), RecordedActions(own="z")
    report = sweep(later, actions)
    assert (actions.published, report.callbacks) == ([("z: mine", "failure")], 1)


class AdvancedStore(WrappedStore):
    """A store whose clock is an hour ahead, so that the leases and grace periods of new entries have ended."""

    def now(self) -> int:
        return super().now() + 3_600_000_000


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def local(clock: FakeClock) -> Store:
    return open_store("memory://", clock=clock)


class RefusingStore(WrappedStore):
    """A store that rejects the writes of one job."""

    def __init__(self, inner: Store, job_id: str, error: StoreError) -> None:
        super().__init__(inner)
        self.job_id = job_id
        self.error = error

    def write(self, ref: JobRef, write: Write) -> WriteReply:
        if ref.key.job_id == self.job_id:
            raise self.error
        return super().write(ref, write)


ERRORS = [StoreError("the document is too large"), StoreContended("others write the same cell")]


@pytest.mark.parametrize("error", ERRORS, ids=["refused", "contended"])
def test_an_attempt_that_cannot_be_ended_does_not_stop_the_sweep(
    local: Store, clock: FakeClock, error: StoreError, caplog: pytest.LogCaptureFixture
) -> None:
    grids = [Grid.create(local, 1, ("a",), job_id=name) for name in ("first", "second", "third")]
    for grid in grids:
        grid.begin("a", 0, owner="dead")
    clock.advance(LEASE + 1)
    with caplog.at_level(logging.WARNING):
        assert sweep(RefusingStore(local, "first", error), RecordedActions()).marked == 2
    assert [grid.cell("a", 0).open for grid in grids] == [True, False, False]
    assert f"job 'first' is left for the next sweep: {error}" in caplog.text
    assert sweep(local, RecordedActions()).marked == 1


@pytest.mark.parametrize("error", ERRORS, ids=["refused", "contended"])
def test_a_received_row_that_cannot_be_marked_does_not_stop_the_sweep(
    local: Store, clock: FakeClock, error: StoreError
) -> None:
    grids = [Grid.submitted(local, 1, job_id=name) for name in ("first", "second")]
    rows = [Received(grid.ref, "a", 0) for grid in grids]
    leases.renew(local, "dead", Report(received=rows), 0)
    clock.advance(1)
    assert sweep(RefusingStore(local, "first", error), RecordedActions()).requeued == 1
    assert sweep(local, RecordedActions()).requeued == 1
    assert list(leases.each_worker(local)) == []


def test_an_unavailable_store_ends_the_sweep(local: Store, clock: FakeClock) -> None:
    for name in ("first", "second"):
        Grid.create(local, 1, ("a",), job_id=name).begin("a", 0, owner="dead")
    clock.advance(LEASE + 1)
    faulty = FaultyStore(local)
    faulty.lose_response("write", applied=False)
    with pytest.raises(StoreUnavailable):
        sweep(faulty, RecordedActions())


class EndlessLists(WrappedStore):
    """A store with long lists of large entries, each of which is created when it is read."""

    def __init__(self, inner: Store, ref: JobRef, workers: int, attempts: int) -> None:
        super().__init__(inner)
        self.ref = ref
        self.workers = workers
        self.attempts = attempts

    def list_workers(self) -> Iterator[WorkerRecord]:
        now = self.now()
        for number in range(self.workers):
            rows = [Received(JobRef(self.ref.key, "another"), "x" * 10_000, row) for row in range(50)]
            body = Report([leases.cell_name(self.ref, "a", number)], received=rows).to_json()
            yield WorkerRecord(f"w{number}", body, now, now + 30_000_000)

    def list_open_attempts(self) -> Iterator[OpenAttempt]:
        for number in range(self.attempts):
            kept = f"{number}" + "x" * 50_000
            yield OpenAttempt(self.ref, "a", number, Cell(1, open=True, owner=f"w{number}", kept=kept))


@pytest.mark.parametrize("look", ["sweep", "jobs at work", "liveness", "why"])
def test_reading_long_lists_takes_little_memory(local: Store, look: str) -> None:
    """100 records and 500 attempts take some 75 MB together."""
    job = Grid.submitted(local, 500).job
    store = EndlessLists(local, job.ref, workers=100, attempts=500)
    looks: dict[str, Callable[[], object]] = {
        "sweep": lambda: sweep(store, RecordedActions(own="another app's")),
        "jobs at work": lambda: leases.jobs_at_work(store)(job.incarnation),
        "liveness": lambda: liveness(store, job),
        "why": lambda: explain(store, job),
    }
    looks[look]()  # what is loaded or remembered once is there
    tracemalloc.start()
    try:
        looks[look]()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6_000_000


def test_active_jobs_are_those_of_live_workers(local: Store, clock: FakeClock) -> None:
    names = ["running", "received", "listed", "dead", "idle"]
    grids = dict(zip(names, (Grid.create(local, 1, ("a",), job_id=name) for name in names)))
    grids["running"].begin("a", 0, owner="alive")
    grids["dead"].begin("a", 0, owner="dead")
    leases.renew(local, "dead", Report(received=[Received(grids["dead"].ref, "a", 0)]), 1)
    clock.advance(2)
    listed = leases.cell_name(grids["listed"].ref, "a", 0)
    leases.renew(local, "alive", Report([listed], received=[Received(grids["received"].ref, "a", 0)]), LEASE)
    held = leases.jobs_at_work(local)
    assert [name for name in names if held(grids[name].ref.incarnation)] == ["running", "received", "listed"]
