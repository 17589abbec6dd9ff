"""Determine from the worker records whether anybody works on a job, without reading its cells."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from celery_statemanager import leases
from celery_statemanager.leases import Report
from celery_statemanager.records import JobRecord, WorkerRecord
from celery_statemanager.stores.capabilities import WorkerRegistry


class Activity(Enum):
    """What the live workers of a store do for a job."""

    WORKING = "working"
    """One of them runs or has received its tasks, or the job needs none of them."""
    IDLE = "idle"
    """None of them has any of its tasks."""
    LOST = "lost"
    """As IDLE, and a dead worker had some; a sweep decides what becomes of them."""
    NO_WORKER = "no worker"
    """There is none."""


@dataclass(frozen=True, slots=True)
class Liveness:
    """Who works on a job, as of one moment.

    Attributes:
        lost: whether a dead worker had tasks of the job that no sweep has handled.
        sweep_at: when the next sweep is due; None if no sweep is due.
        lease_until: when the last lease of a worker that works on the job ends, unless it is renewed.
        lease: the longest lease of the live workers, in seconds.
    """

    activity: Activity
    lost: bool = False
    sweep_at: int | None = None
    lease_until: int | None = None
    lease: float = 0.0


class WorkerSnapshot:
    """The worker records of a store at one moment.

    Attributes:
        turn: the record of the last sweep; its lease is the interval until the next one.
    """

    def __init__(self, store: WorkerRegistry) -> None:
        self.now = store.now()
        self.records = leases.workers(store)
        self.turn = store.get_worker(leases.SWEEPER)
        self.alive = [each for each in self.records.values() if each.lease_until > self.now]
        self.dead = [each for each in self.records.values() if each.lease_until <= self.now]

    @property
    def sweep_at(self) -> int | None:
        """The time of the next sweep; None if the last one is two intervals ago."""
        turn = self.turn
        if turn is None or self.now >= 2 * turn.lease_until - turn.renewed_at:
            return None
        return max(self.now, turn.lease_until)


def liveness(store: WorkerRegistry, job: JobRecord) -> Liveness:
    """Return who works on a job; reads nothing for a job that needs no worker. Raises: StoreError."""
    if job.submission is None or job.settled:
        return Liveness(Activity.WORKING)
    workers = WorkerSnapshot(store)
    lost = any(_names(record, job) for record in workers.dead)
    at_work = [record.lease_until for record in workers.alive if _may_have(record, job)]
    lease = max((each.lease_until - each.renewed_at for each in workers.alive), default=0) / 1_000_000
    if at_work:
        return Liveness(Activity.WORKING, lost, workers.sweep_at, max(at_work), lease)
    being_submitted = not job.submission.done and job.submission.alive_until > workers.now
    if not workers.alive:
        activity = Activity.WORKING if being_submitted and not lost else Activity.NO_WORKER
    else:
        activity = Activity.LOST if lost else Activity.IDLE
    return Liveness(activity, lost, workers.sweep_at, lease=lease)


def _names(record: WorkerRecord, job: JobRecord) -> bool:
    """Return whether a record names a cell of the job; the body of a record spells incarnations as they are."""
    return job.incarnation in record.body


def _may_have(record: WorkerRecord, job: JobRecord) -> bool:
    """Return whether a worker has, or may have without listing them, tasks of the job."""
    return _names(record, job) or bool(Report.from_record(record).cut)
