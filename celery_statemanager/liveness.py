"""Determine from the worker records whether live workers process a job, without reading its cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from celery_statemanager import leases
from celery_statemanager.leases import Report
from celery_statemanager.records import JobRecord, JobRef, WorkerRecord
from celery_statemanager.stores.capabilities import Outbox, WorkerRegistry


class Activity(Enum):
    """Whether the live workers of a store process a job."""

    WORKING = "working"
    """A live worker runs or has received its tasks, or the job needs no worker."""
    IDLE = "idle"
    """No live worker has any of its tasks."""
    LOST = "lost"
    """As IDLE, but a dead worker had some of its tasks. The next sweep marks them as LOST or makes them due again."""
    NO_WORKER = "no worker"
    """No worker is alive."""


@dataclass(frozen=True, slots=True)
class Liveness:
    """The state of the workers of a job at one moment.

    Attributes:
        lost: whether a dead worker had tasks of the job that no sweep has handled.
        sweep_at: the time of the next sweep; None if no sweep is due.
        lease_until: the latest end of a lease among the workers of the job; None if the job has no live worker.
        lease: the longest lease of the live workers, in seconds.
    """

    activity: Activity
    lost: bool = False
    sweep_at: int | None = None
    lease_until: int | None = None
    lease: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkerShare:
    """The part of a worker record that concerns one job.

    Attributes:
        named: whether the record names a cell of the job.
        report: the report, reduced to the job.
    """

    worker_id: str
    renewed_at: int
    lease_until: int
    named: bool
    report: Report

    @classmethod
    def from_record(cls, record: WorkerRecord, ref: JobRef) -> WorkerShare:
        """Read the part of a record that concerns a job."""
        report = Report.from_record(record).about(ref)
        named = ref.incarnation in record.body  # also in a record that cannot be read
        return cls(record.worker_id, record.renewed_at, record.lease_until, named, report)


@dataclass(frozen=True, slots=True)
class ListedCells:
    """The part of a worker record that a sweep keeps in memory. The body of a record may be large.

    Attributes:
        gone_at: when its lease ends. A worker that has stopped counts as dead a renewal later, because the broker
            delivers its messages again.
        processes: the ids of its processes that run tasks, as of ``renewed_at``; None if the record is unreadable.
        cells: the hashes of the names of the listed cells; None if the record may leave some out.
        ended: the cells whose attempts the worker has ended itself, as in ``leases.Report``.
        takes_nothing: whether its main loop has been blocked for a lease, and it is not shutting down.
        moving: the hashes of the names of the cells whose attempts count as moving, with the time until which they do.
    """

    renewed_at: int
    gone_at: int
    processes: frozenset[int] | None = frozenset()
    cells: frozenset[int] | None = None
    ended: Mapping[str, int] = field(default_factory=dict)
    takes_nothing: bool = False
    moving: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def from_record(cls, record: WorkerRecord, now: int, renewal: int) -> ListedCells:
        """Read a record."""
        report = Report.from_record(record)
        processes = frozenset(report.processes) if report.readable else None
        cells = frozenset(map(hash, report.cells)) if report.lists_all else None
        if record.lease_until <= now:
            has_stopped = record.lease_until == record.renewed_at and report.stopping
            return cls(record.renewed_at, record.lease_until + has_stopped * renewal, processes, cells)
        takes_nothing = report.stands_still_since(record.renewed_at, record.lease_until) is not None
        moving = dict.fromkeys(map(hash, report.pending), record.lease_until)
        for name, seconds in report.moving.items():
            moving[hash(name)] = max(moving.get(hash(name), 0), record.renewed_at + round(seconds * 1_000_000))
        return cls(record.renewed_at, record.lease_until, processes, cells, report.ended, takes_nothing, moving)

    def lists(self, name: str) -> bool:
        """Return whether the worker lists, or may run, an attempt on this cell."""
        return self.cells is None or hash(name) in self.cells


class WorkerSnapshot:
    """The shares of all workers of a store in one job, at one moment. Memory does not grow with the records' size.

    Attributes:
        turn: the record of the last sweep; its lease lasts until the next one.
    """

    def __init__(self, store: WorkerRegistry, ref: JobRef) -> None:
        self.now = store.now()
        self.shares = {each.worker_id: WorkerShare.from_record(each, ref) for each in leases.each_worker(store)}
        self.turn = store.get_worker(leases.SWEEPER)
        self.alive = [each for each in self.shares.values() if each.lease_until > self.now]
        self.dead = [each for each in self.shares.values() if each.lease_until <= self.now]

    @property
    def sweep_at(self) -> int | None:
        """The time of the next sweep; None if the last one is more than two intervals ago."""
        turn = self.turn
        if turn is None or self.now >= 2 * turn.lease_until - turn.renewed_at:
            return None
        return max(self.now, turn.lease_until)


def liveness(store: Outbox, job: JobRecord) -> Liveness:
    """Return the state of a job's workers. Reads nothing for a job that needs no worker. Raises: StoreError."""
    if job.flow is None or job.settled:
        return Liveness(Activity.WORKING)
    workers = WorkerSnapshot(store, job.ref)
    lost = any(share.named for share in workers.dead)
    at_work = [share.lease_until for share in workers.alive if share.named or share.report.cut]
    lease = max((each.lease_until - each.renewed_at for each in workers.alive), default=0) / 1_000_000
    if at_work:
        return Liveness(Activity.WORKING, lost, workers.sweep_at, max(at_work), lease)
    if not workers.alive:
        being_submitted = any(claim.until > workers.now for claim in store.get_outbox(job.ref).claims.values())
        activity = Activity.WORKING if being_submitted and not lost else Activity.NO_WORKER
    else:
        activity = Activity.LOST if lost else Activity.IDLE
    return Liveness(activity, lost, workers.sweep_at, lease=lease)
