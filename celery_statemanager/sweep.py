"""Find what died without a word, and mend it: attempts, received rows, callbacks, submissions (rules R12, R15, R16)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from celery_statemanager import completion, leases
from celery_statemanager.errors import (
    AttemptSuperseded,
    JobCancelled,
    JobNotFound,
    StoreContended,
    StoreError,
    StoreUnavailable,
)
from celery_statemanager.leases import Report
from celery_statemanager.records import LATCHES, JobRecord, JobRef, OpenAttempt, WorkerRecord, Write, new_event_id
from celery_statemanager.retention import current
from celery_statemanager.stores.capabilities import WorkerRegistry

logger = logging.getLogger(__name__)


class SweepActions(Protocol):
    """What a sweep does outside of the store. What is another app's is left to that app's sweep."""

    def resend(self, ref: JobRef, message: str) -> bool:
        """Publish a kept message once more; False if that is left to another app. Raises: what the broker raises."""

    def publish(self, ref: JobRef, decided: tuple[str, ...]) -> int:
        """Publish the callbacks of latches that have fallen; give how many were."""


@dataclass(slots=True)
class SweepReport:
    """What a sweep did, in numbers."""

    marked: int = 0
    requeued: int = 0
    callbacks: int = 0
    submissions: int = 0
    workers: int = 0

    def __bool__(self) -> bool:
        return any((self.marked, self.requeued, self.callbacks, self.submissions))


@dataclass(frozen=True, slots=True)
class _Worker:
    """What a sweep keeps of a worker's record, whose body may be large.

    Attributes:
        cells: the hashes of the names of the cells that it lists; None if it accounts for others too.
    """

    renewed_at: int
    lease_until: int
    cells: frozenset[int] | None = None

    @classmethod
    def from_record(cls, record: WorkerRecord, now: int) -> _Worker:
        """Read a record; what a dead worker lists does not matter."""
        if record.lease_until <= now:
            return cls(record.renewed_at, record.lease_until)
        report = Report.from_record(record)
        cells = frozenset(map(hash, report.cells)) if report.lists_all else None
        return cls(record.renewed_at, record.lease_until, cells)

    def lists(self, name: str) -> bool:
        """Whether it accounts for an attempt on this cell."""
        return self.cells is None or hash(name) in self.cells


class Sweep:
    """One look at a whole store. Acts by compare-and-set on what it saw, so two at once do no harm.

    Args:
        lease: seconds for which workers are believed to live; judged by the store's clock.
        max_lost: losses at which a cell is LOST whatever its policy.
    """

    def __init__(self, store: WorkerRegistry, actions: SweepActions, *, lease: float, max_lost: int) -> None:
        self._store = store
        self._actions = actions
        self._lease = round(lease * 1_000_000)
        self._max_lost = max_lost
        self._swept = SweepReport()

    def run(self) -> SweepReport:
        """Look once. What fails for one job is logged and does not keep it from the others.

        Raises: StoreUnavailable; StoreError – a list cannot be read.
        """
        now = self._store.now()
        known = {each.worker_id: _Worker.from_record(each, now) for each in leases.each_worker(self._store)}
        for attempt in self._store.list_open_attempts():
            if self._is_lost(attempt, known.get(attempt.cell.owner or ""), now):
                self._guarded(partial(self._lose, attempt), attempt.ref)
        for worker_id, worker in known.items():
            if worker.lease_until <= now:
                self._bury(worker_id)
        self._look_at_due_jobs(now)
        return self._swept

    def _is_lost(self, attempt: OpenAttempt, worker: _Worker | None, now: int) -> bool:
        began_at = attempt.cell.began_at
        if worker is None:
            return began_at < now - self._lease
        if worker.lease_until <= now:
            return began_at <= worker.lease_until or began_at < now - self._lease
        listed = worker.lists(leases.cell_name(attempt.ref, attempt.tag, attempt.task_index))
        return not listed and began_at < worker.renewed_at - self._lease // leases.RENEWALS

    def _lose(self, attempt: OpenAttempt) -> None:
        """Mark it or send it again, unless its worker has come back since this sweep began."""
        cell = attempt.cell
        record, now = self._store.get_worker(cell.owner or ""), self._store.now()
        if not self._is_lost(attempt, None if record is None else _Worker.from_record(record, now), now):
            return
        place = attempt.tag, attempt.task_index
        if cell.kept is None or cell.losses + 1 >= self._max_lost:
            decided = leases.mark_lost(self._store, attempt.ref, *place, cell, new_event_id(), max_lost=self._max_lost)
            self._swept.marked += 1
            if decided:
                self._actions.publish(attempt.ref, decided)
            return
        if not self._actions.resend(attempt.ref, cell.kept):
            return
        self._swept.requeued += 1
        message = f"sent again: its worker {cell.owner} is gone"
        self._store.write(attempt.ref, Write.returned(*place, message, attempt=cell.attempt, counts_as_loss=True))

    def _bury(self, worker_id: str) -> None:
        """Mend what a dead worker had received and not begun, then forget it, or all of it but what could not be."""
        worker = self._store.get_worker(worker_id)
        if worker is None or worker.lease_until > self._store.now():
            return
        report = Report.from_record(worker)
        if not report.readable:
            return
        received = [*report.received]
        left = [row for row in received if not self._guarded(partial(self._mend, row, worker.worker_id), row.ref)]
        if not left:
            self._store.drop_worker(worker.worker_id)
            self._swept.workers += 1
        elif len(left) < len(received):
            self._store.put_worker(worker.worker_id, Report(received=left).to_json(), 0)

    def _mend(self, row: leases.Received, worker_id: str) -> bool:
        cell = self._store.get_cell(row.ref, row.tag, row.task_index)
        if cell is not None and (cell.open or cell.final or row.delivery < cell.delivery):
            return True
        if row.message is not None:
            resent = self._actions.resend(row.ref, row.message)
            self._swept.requeued += resent
            return resent
        lost = Write.lost(row.tag, row.task_index, f"lost with its worker {worker_id} before it began")
        self._actions.publish(row.ref, self._store.write(row.ref, lost).decided)
        self._swept.marked += 1
        return True

    def _look_at_due_jobs(self, now: int) -> None:
        cursor: str | None = None
        while True:
            page = self._store.list_jobs(cursor, due=True)
            for job in page.jobs:
                self._guarded(partial(self._mend_job, job, now), job.ref)
            if page.cursor is None:
                return
            cursor = page.cursor

    def _mend_job(self, job: JobRecord, now: int) -> None:
        grace = now - self._lease // leases.RENEWALS
        overdue = tuple(name for name, latch in job.latches.items() if latch.due and (latch.decided_at or 0) < grace)
        if overdue:
            self._swept.callbacks += self._actions.publish(job.ref, overdue) > 0
        submission = job.submission
        if submission is not None and not submission.done and submission.alive_until < now:
            reason = f"submit failed after {submission.published} of {job.num_tasks}: its publisher is gone"
            completion.cancel(self._store, job.ref, reason)
            fresh = current(self._store, job.ref)
            if fresh.submission is not None:
                self._store.update_job(replace(fresh, submission=replace(fresh.submission, done=True)))
            self._actions.publish(job.ref, LATCHES)
            self._swept.submissions += 1

    @staticmethod
    def _guarded(action: Callable[[], bool | None], ref: JobRef) -> bool:
        """Do something for a job; whether nothing of it is left to do."""
        try:
            return action() is not False
        except (AttemptSuperseded, JobCancelled, JobNotFound) as error:
            logger.info("sweep: %s", error, extra={"job_id": ref.key.job_id})
            return True
        except StoreError as error:
            if isinstance(error, StoreUnavailable) and not isinstance(error, StoreContended):
                raise
            job_id = ref.key.job_id
            logger.warning("sweep: job %r is left for the next sweep: %s", job_id, error, extra={"job_id": job_id})
            return False
        except Exception:
            job_id = ref.key.job_id
            logger.exception("sweep: job %r is left for the next sweep", job_id, extra={"job_id": job_id})
            return False
