"""Helpers for tests of stores."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from celery_statemanager.leases import each_worker
from celery_statemanager.manager import Manager
from celery_statemanager.models import Scope, State, Status
from celery_statemanager.plan import PlanSpec
from celery_statemanager.records import (
    Batch,
    Begin,
    BeginReply,
    Cancellation,
    Cell,
    ClaimRequest,
    Flow,
    JobRecord,
    JobRef,
    Latch,
    Policy,
    WorkerRecord,
    Write,
    WriteReply,
    new_job,
)
from celery_statemanager.stores.base import Store, Watch
from celery_statemanager.stores.capabilities import Outbox, WorkerRegistry

PATIENCE = 20.0
"""Seconds after which a test stops waiting for something that should happen at once."""

FINISHED, FAILED, CANCELLED = int(Status.FINISHED), int(Status.FAILED), int(Status.CANCELLED)


Test = TypeVar("Test", bound=Callable[..., object])


def smoke(test: Test) -> Test:
    """Mark a test that also runs on slow stores in every run. Each rule has at least one such test."""
    test.is_smoke = True  # type: ignore[attr-defined] # every user would have to register a mark of pytest
    return test


def is_smoke(test: object) -> bool:
    """Return whether a test function was marked by ``smoke``."""
    return getattr(test, "is_smoke", False)


@dataclass(frozen=True)
class StoreFactory:
    """How the contract creates the store under test.

    Attributes:
        make: returns a new store object on the same data at each call; accepts ``clock=`` if ``takes_clock``.
        url: the URL under which other processes open the same data; None if the data belong to one store object. Tests
            that share data are then skipped.
        takes_clock: whether a test can supply the store's clock. The clock of a server cannot be replaced.
    """

    make: Callable[..., Store]
    url: str | None = None
    takes_clock: bool = False


class FakeClock:
    """A clock that moves only by ``advance``. Thread-safe.

    Args:
        start: seconds since the epoch.
    """

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._seconds = start
        self._lock = threading.Lock()

    def __call__(self) -> float:
        with self._lock:
            return self._seconds

    def advance(self, seconds: float) -> None:
        """Set the clock forward, or back if ``seconds`` is negative."""
        with self._lock:
            self._seconds += seconds


class Grid:
    """A job under test. Methods take the tag and the row first and fields of the records as keywords."""

    def __init__(self, store: Store, ref: JobRef) -> None:
        self.store = store
        self.ref = ref

    @classmethod
    def create(
        cls,
        store: Store,
        num_tasks: int = 3,
        tags: PlanSpec | None = None,
        job_id: str = "job",
        run_token: str | None = None,
        policy: Policy | None = None,
        **callbacks: str,
    ) -> Grid:
        """Create a job; ``success=``, ``failure=`` and ``settled=`` name its callbacks."""
        job = replace(new_job(job_id, num_tasks, tags, run_token), policy=policy or Policy())
        latches = {name: Latch(callback) for name, callback in callbacks.items()}
        return cls(store, store.create_job(job.with_latches(**latches)).ref)

    @classmethod
    def submitted(
        cls,
        store: Outbox,
        num_tasks: int = 3,
        tags: PlanSpec | None = ("a",),
        job_id: str = "job",
        published: int | None = None,
        flow: Flow | None = None,
        policy: Policy | None = None,
        **callbacks: str,
    ) -> Grid:
        """Create a job that owns its messages, in one block. ``published`` rows are published; None for all."""
        latches = {name: Latch(callback) for name, callback in callbacks.items()}
        job = replace(new_job(job_id, num_tasks, tags), flow=flow or Flow(), policy=policy or Policy()).with_latches(
            **latches
        )
        store.add_block(job.ref, 0, b"messages", 60)
        grid = cls(store, store.create_job(job).ref)
        for limit in (num_tasks if published is None else published, 0):
            store.claim(grid.ref, ClaimRequest(publisher="submitter", limit=limit))
        return grid

    @property
    def job(self) -> JobRecord:
        """The current record of the job."""
        return self.store.get_job(self.ref.key)

    @property
    def decided(self) -> set[str]:
        """The names of the decided latches."""
        return {name for name, latch in self.job.latches.items() if latch.decided_at is not None}

    def seen_by(self, store: Store) -> Grid:
        """Return the same job on another store object."""
        return Grid(store, self.ref)

    def manager(self, task_index: int | None = None) -> Manager:
        """Open the job as an application does."""
        return Manager.open(self.store, self.ref.key.job_id, run_token=self.ref.key.run_token, task_index=task_index)

    def write(self, tag: str, row: int, status: int, **fields: Any) -> WriteReply:
        """Write a cell."""
        return self.store.write(self.ref, Write(tag=tag, task_index=row, status=status, **fields))

    def write_each(self, places: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
        """Write cells, one after the other, and return them in the order in which readers see them.

        Readers see the oldest first, and cells of one millisecond by tag and row. The store's clock decides which cells
        these are.
        """
        times = {place: self.write(*place, 5).cell.timestamp for place in places}
        return sorted(times, key=lambda place: (times[place], *place))

    def begin(self, tag: str, row: int, **fields: Any) -> BeginReply:
        """Begin an attempt."""
        return self.store.begin(self.ref, self.request(tag, row, **fields))

    def request(self, tag: str, row: int, **fields: Any) -> Begin:
        """Create a Begin without sending it."""
        return Begin(tag=tag, task_index=row, **fields)

    def end(self, tag: str, row: int, status: int = FINISHED, **fields: Any) -> WriteReply:
        """End the open attempt as the end of a task does. A failure blocks the row's later stages."""
        fields = {"attempt": self.cell(tag, row).attempt, "block_later_stages": status < 0, **fields}
        return self.write(tag, row, status, ends_attempt=True, **fields)

    def run(self, tag: str, row: int, status: int = FINISHED, **fields: Any) -> WriteReply:
        """Begin and end an attempt."""
        self.begin(tag, row)
        return self.end(tag, row, status, **fields)

    def cell(self, tag: str, row: int) -> Cell:
        """Return a cell as stored, or an empty one if it was never written."""
        return self.store.get_cell(self.ref, tag, row) or Cell()

    def state(self, tag: str, row: int) -> State:
        """Return a cell as readers see it."""
        return self.store.lowest(self.ref, Scope(tag, row))

    def lowest(self, tag: str | None = None, row: int | None = None) -> State:
        """Return the lowest cell of a scope."""
        return self.store.lowest(self.ref, Scope(tag, row))

    def states(self, tag: str | None = None, row: int | None = None) -> list[State]:
        """Return the written cells of a scope."""
        return list(self.store.list_states(self.ref, Scope(tag, row)))

    def update(self, change: Callable[[JobRecord], JobRecord]) -> tuple[str, ...]:
        """Change the job record by compare-and-set, repeated while other writers change it."""
        while True:
            decided = self.store.update_job(change(self.job))
            if decided is not None:
                return decided

    def cancel(self, reason: str | None = "user asked") -> tuple[str, ...]:
        """Cancel the job. Return the latches that this decided."""
        return self.update(lambda job: replace(job, cancelled=Cancellation(reason, self.store.now())))

    def tombstone(self) -> None:
        """Tombstone the job."""
        self.update(lambda job: replace(job, tombstoned_at=self.store.now()))

    def delete(self) -> None:
        """Delete the job and purge its garbage."""
        assert self.store.delete_job(self.job)
        purge(self.store)


def purge(store: Store, limit: int = 1_000) -> int:
    """Purge all garbage. Return the number of removed rows."""
    removed = 0
    while count := store.purge(limit):
        removed += count
    return removed


def workers(store: WorkerRegistry) -> dict[str, WorkerRecord]:
    """Return all worker records by id, those of dead workers too, without the record of the last sweep."""
    return {each.worker_id: each for each in each_worker(store)}


def every_job(store: Store, limit: int = 100, **filters: Any) -> Iterator[JobRecord]:
    """Yield all jobs, page by page."""
    cursor: str | None = None
    while True:
        page = store.list_jobs(cursor, limit, **filters)
        assert len(page.jobs) <= limit
        yield from page.jobs
        cursor = page.cursor
        if cursor is None:
            return


def newest_jobs(store: Store, limit: int = 100) -> Iterator[JobRecord]:
    """Yield all jobs by their creation, the newest first, page by page."""
    cursor: str | None = None
    while True:
        page = store.newest_jobs(cursor, limit)
        assert len(page) <= limit
        yield from (each.job for each in page)
        if len(page) < limit:
            return
        cursor = page[-1].cursor


def read_until(watch: Watch, enough: Callable[[Batch], bool], patience: float = PATIENCE) -> Batch:
    """Read a watch until the merged batches are enough. Raises: AssertionError after ``patience`` seconds."""
    deadline = time.monotonic() + patience
    newest: dict[tuple[str, int], State] = {}
    total = Batch([])
    while not enough(total):
        left = deadline - time.monotonic()
        assert left > 0, f"the watch delivered only {total} in {patience} s"
        batch = watch.read(left)
        newest.update({(state.tag, state.task_index): state for state in batch.states})
        total = Batch(list(newest.values()), total.job_changed or batch.job_changed, total.resync or batch.resync)
    return total


def statuses(states: Iterable[State]) -> dict[tuple[str, int], int]:
    """Return the statuses by tag and row."""
    return {(state.tag, state.task_index): state.status for state in states}
