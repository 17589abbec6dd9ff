"""Recover the work of dead processes: attempts, received rows, callbacks, messages (rules R15, R16, R19)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from celery_statemanager import attempts, leases, pauses
from celery_statemanager.errors import (
    AttemptSuperseded,
    BeginRefused,
    JobCancelled,
    JobNotFound,
    StoreContended,
    StoreError,
    StoreUnavailable,
)
from celery_statemanager.leases import Report
from celery_statemanager.liveness import ListedCells
from celery_statemanager.models import Status
from celery_statemanager.records import (
    AT_BROKER,
    Cell,
    Claim,
    JobRecord,
    JobRef,
    OpenAttempt,
    OutboxState,
    Write,
    new_event_id,
)
from celery_statemanager.retention import current
from celery_statemanager.stores.capabilities import Outbox

logger = logging.getLogger(__name__)


class SweepActions(Protocol):
    """The actions of a sweep outside the store. Messages and callbacks of another app are left to that app's sweep."""

    def owns(self, ref: JobRef, message: str) -> bool:
        """Return whether a stored message belongs to this app."""

    def resend(self, ref: JobRef, message: str) -> bool:
        """Publish a stored message again. Return False if it belongs to another app. Raises: what the broker raises."""

    def publish(self, ref: JobRef, decided: tuple[str, ...]) -> int:
        """Publish the callbacks of decided latches. Return the number of published callbacks."""

    def publish_messages(self, job: JobRecord, outbox: OutboxState, dead: Collection[str]) -> int:
        """Publish the messages of a job that are due, and those that dead publishers had claimed. Return their number.

        Messages of another app are left to that app's sweep.
        """


@dataclass(slots=True)
class SweepReport:
    """Counts of what a sweep did.

    Attributes:
        marked: cells marked as LOST.
        requeued: messages published again.
        callbacks: jobs whose overdue callbacks were published.
        published: messages of rows published because no other process did.
        workers: records of dead workers that were deleted.
    """

    marked: int = 0
    requeued: int = 0
    callbacks: int = 0
    published: int = 0
    workers: int = 0

    def __bool__(self) -> bool:
        return any((self.marked, self.requeued, self.callbacks, self.published))


class Sweep:
    """One pass over a whole store. Each action is a compare-and-set, so concurrent sweeps are harmless.

    Args:
        lease: seconds for which a worker counts as alive after its last report, by the store's clock.
        max_lost: the number of losses at which a cell becomes LOST regardless of its policy.
        has_succeeded: returns whether a lost attempt is known to have succeeded, for example by its stored result. Its
            cell becomes FINISHED.
    """

    def __init__(
        self,
        store: Outbox,
        actions: SweepActions,
        *,
        lease: float,
        max_lost: int,
        has_succeeded: Callable[[OpenAttempt], bool] = lambda _: False,
    ) -> None:
        self._store = store
        self._actions = actions
        self._has_succeeded = has_succeeded
        self._lease = round(lease * 1_000_000)
        self._renewal = self._lease // leases.RENEWALS
        self._max_lost = max_lost
        self._report = SweepReport()
        self._known: dict[str, ListedCells] = {}
        """The workers of the store."""
        self._left: set[str | None] = set()
        """The workers with attempts that this sweep has left open."""

    def run(self) -> SweepReport:
        """Sweep once. An error of one job is logged, and the other jobs are still swept.

        Raises: StoreUnavailable; StoreError – a list cannot be read.
        """
        now = self._store.now()
        records = leases.each_worker(self._store)
        known = {each.worker_id: ListedCells.from_record(each, now, self._renewal) for each in records}
        self._known = known
        overdue = pauses.Overdue(self._store, self._lease, now)
        for attempt in self._store.list_open_attempts():
            if not attempt.cell.open:
                if overdue.includes(attempt):
                    self._guarded(partial(self._end_pause, attempt), attempt.ref)
                continue
            is_lost = self._is_lost(attempt, known.get(attempt.cell.owner or ""), now)
            if is_lost and not self._guarded(partial(self._reclaim_attempt, attempt), attempt.ref):
                self._left.add(attempt.cell.owner)
        for worker_id, worker in known.items():
            if worker.gone_at <= now:
                self._reclaim_received(worker_id)
            elif worker.takes_nothing:
                self._return_received(worker_id)
        self._sweep_due_jobs(now)
        self._store.drop_expired_drafts()
        return self._report

    def _is_lost(self, attempt: OpenAttempt, worker: ListedCells | None, now: int) -> bool:
        began_at = attempt.cell.began_at
        if worker is None:
            return began_at < now - self._lease
        if worker.gone_at <= now:
            return began_at <= worker.gone_at or began_at < now - self._lease
        name = leases.cell_name(attempt.ref, attempt.tag, attempt.task_index)
        ended_at = worker.ended.get(name, 0)
        if began_at < ended_at:
            return ended_at + self._renewal <= now
        return not worker.lists(name) and began_at < worker.renewed_at - self._renewal

    def _end_pause(self, attempt: OpenAttempt) -> None:
        """Publish the message again that the broker has dropped, or end its cell if that is impossible.

        It is counted before it is published, because it may begin at once. If publishing fails, it waits again.
        """
        cell, place = attempt.cell, (attempt.tag, attempt.task_index)
        if not pauses.may_resend(current(self._store, attempt.ref), cell, self._max_lost):
            self._write(attempt.ref, pauses.rejected(*place, cell))
            self._report.marked += 1
        elif self._actions.owns(attempt.ref, cell.kept or ""):
            self._store.write(attempt.ref, pauses.resent(*place, cell))
            self._resend(attempt.ref, cell.kept or "")

    def _reclaim_attempt(self, attempt: OpenAttempt) -> bool:
        """Mark a lost attempt or publish its message again. Return whether it needs no further sweep."""
        cell = attempt.cell
        record, now = self._store.get_worker(cell.owner or ""), self._store.now()
        worker = None if record is None else ListedCells.from_record(record, now, self._renewal)
        if not self._is_lost(attempt, worker, now):
            return True
        ref, place = attempt.ref, (attempt.tag, attempt.task_index)
        if self._has_succeeded(attempt):
            self._write(ref, Write.proven(*place, attempt=cell.attempt))
            return True
        stopped = leases.was_stopped(record, leases.cell_name(ref, *place), cell.began_at, now)
        if cell.kept is None or (not stopped and cell.losses + 1 >= self._max_lost):
            most = None if stopped else self._max_lost
            decided = attempts.mark_lost(self._store, ref, *place, cell, new_event_id(), max_lost=most)
            self._report.marked += 1
            if decided:
                self._actions.publish(ref, decided)
            return True
        message = f"its worker {cell.owner} {'has stopped' if stopped else 'is dead'}"
        if cell.kept == AT_BROKER:
            message = f"waits for the broker to deliver it again: {message}"
        elif self._resend(ref, cell.kept):
            message = f"sent again: {message}"
        else:
            return False
        returned = Write.returned(*place, message, attempt=cell.attempt, counts_as_loss=not stopped)
        returned.presumed_dead = True
        self._store.write(ref, returned)
        return True

    def _reclaim_received(self, worker_id: str) -> None:
        """Reclaim the rows that a dead worker had received, then delete its record or reduce it to the other rows."""
        worker = self._store.get_worker(worker_id)
        if worker is None or worker.lease_until > self._store.now():
            return
        report = Report.from_record(worker)
        if not report.readable:
            return
        received, parts = [*report.received], [*report.parts]
        left = [row for row in received if not self._guarded(partial(self._reclaim_row, row, worker_id), row.ref)]
        left_parts = [row for row in parts if not self._guarded(partial(self._reclaim_part, row, worker_id), row.ref)]
        if not left and not left_parts and worker_id not in self._left:
            self._store.drop_worker(worker_id)
            self._report.workers += 1
        elif len(left) + len(left_parts) < len(received) + len(parts):
            self._store.put_worker(worker_id, replace(report, received=left, parts=left_parts).to_json(), 0)

    def _reclaim_row(self, row: leases.Received, worker_id: str) -> bool:
        """Return whether the row needs no further sweep."""
        if row.message == AT_BROKER:
            return True
        cell = self._store.get_cell(row.ref, row.tag, row.task_index) or Cell()
        if cell.open or cell.final or row.delivery < cell.delivery:
            return True
        if row.message is not None:
            return self._resend(row.ref, row.message)
        lost = Write.lost(row.tag, row.task_index, f"lost with its worker {worker_id} before it began")
        self._write(row.ref, lost)
        self._report.marked += 1
        return True

    def _reclaim_part(self, row: leases.Received, worker_id: str) -> bool:
        """Send a part of a replacement again that ran in a dead worker, or end the row, whose replacement it cut off.

        Returns: whether the row needs no further sweep.
        """
        cell = self._store.get_cell(row.ref, row.tag, row.task_index)
        if cell is not None and (cell.final or cell.delivery > row.delivery):
            return True
        if cell is not None and cell.open and cell.delivery == row.delivery:  # the task that waited for the part runs
            return True
        if row.message is not None:
            return self._resend(row.ref, row.message)
        message = f"lost with its worker {worker_id} (in a task of its replacement)"
        lost = Write.cut_off(row.tag, row.task_index, int(Status.LOST), message, row.delivery)
        try:
            self._write(row.ref, lost)
        except BeginRefused:
            return True
        self._report.marked += 1
        return True

    def _return_received(self, worker_id: str) -> None:
        """Publish again, once for each worker, the messages that a live worker has received and does not begin."""
        worker = self._store.get_worker(worker_id)
        for row in Report.from_record(worker).received if worker else ():
            self._guarded(partial(self._return_row, row, worker_id), row.ref)

    def _return_row(self, row: leases.Received, worker_id: str) -> None:
        cell = self._store.get_cell(row.ref, row.tag, row.task_index) or Cell()
        event_id = f"given back by {worker_id} {'.'.join(map(str, row.delivery))}"
        begun = cell.open or cell.final or row.delivery < cell.delivery
        if begun or cell.event_id == event_id or row.message in {None, AT_BROKER}:
            return
        if self._resend(row.ref, row.message):
            message = f"sent again: received by worker {worker_id}, whose main loop is blocked"
            back = Write.never_begun(row.tag, row.task_index, cell.status, message)
            back.event_id = event_id
            self._store.write(row.ref, back)

    def _write(self, ref: JobRef, write: Write) -> None:
        """Write a cell and publish the callbacks of the latches that this decided."""
        self._actions.publish(ref, self._store.write(ref, write).decided)

    def _resend(self, ref: JobRef, message: str) -> bool:
        """Publish a stored message again and count it. Return False if it belongs to another app."""
        resent = self._actions.resend(ref, message)
        self._report.requeued += resent
        return resent

    def _sweep_due_jobs(self, now: int) -> None:
        cursor: str | None = None
        while True:
            page = self._store.list_jobs(cursor, due=True)
            for job in page.jobs:
                self._guarded(partial(self._sweep_job, job, now), job.ref)
            if page.cursor is None:
                return
            cursor = page.cursor

    def _sweep_job(self, job: JobRecord, now: int) -> None:
        grace = now - self._renewal
        overdue = tuple(name for name, latch in job.latches.items() if latch.due and (latch.decided_at or 0) < grace)
        if overdue:
            self._report.callbacks += self._actions.publish(job.ref, overdue) > 0
        if job.publishes:
            self._report.published += self._publish_messages(job, now)

    def _publish_messages(self, job: JobRecord, now: int) -> int:
        """Publish the rows of a job that are due, unless its submitter is doing so. Return their number."""
        outbox = self._store.get_outbox(job.ref)
        dead = {name for name, claim in outbox.claims.items() if self._is_gone(name, claim, now)}
        if not dead and (outbox.claimed == job.num_tasks or (outbox.claims and not job.has_window)):
            return 0
        return self._actions.publish_messages(job, outbox, dead)

    def _is_gone(self, publisher: str, claim: Claim, now: int) -> bool:
        """Return whether the publisher of a claim is dead and may not have published it."""
        if claim.until != claim.at:
            return claim.until <= now
        worker_id, _, thread = publisher.partition("/")
        worker = self._known.get(worker_id)
        if worker is None or worker.gone_at <= now:
            return True
        return claim.at < worker.renewed_at and int(thread.partition(".")[0]) not in worker.processes

    @staticmethod
    def _guarded(action: Callable[[], bool | None], ref: JobRef) -> bool:
        """Run an action for a job and log its errors. Return whether the job needs no further sweep."""
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
