"""Recover the work of dead processes: attempts, received rows, callbacks, messages (rules R15, R16, R19)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from celery_statemanager import attempts, completion, leases, requeued
from celery_statemanager.errors import (
    AttemptSuperseded,
    BeginRefused,
    JobCancelled,
    JobNotFound,
    StoreContended,
    StoreError,
    StoreUnavailable,
)
from celery_statemanager.leases import Received, Report
from celery_statemanager.liveness import ListedCells
from celery_statemanager.lost_messages import Lost, LostMessages, Queues
from celery_statemanager.models import Status
from celery_statemanager.publishers import Fate, Publishers, has_due
from celery_statemanager.records import (
    CALLBACK_ROW,
    Cell,
    JobRecord,
    JobRef,
    OpenAttempt,
    OutboxState,
    Write,
    new_event_id,
)
from celery_statemanager.stores.capabilities import Outbox

logger = logging.getLogger(__name__)


_Reclaimed = tuple[Report, list[Received], list[Received]]


class SweepActions(Queues, Protocol):
    """The actions of a sweep outside the store. What belongs to another app is left to that app's sweep."""

    broker_redelivers: bool
    """Whether the broker delivers at once what a dead worker had received."""

    def finish_if_succeeded(self, attempt: OpenAttempt) -> bool:
        """Return whether a lost attempt is known to have succeeded, for example by its stored result; then end it."""

    def runs_again(self, attempt: OpenAttempt) -> bool | None:
        """Return whether the policy is to run a lost attempt again; None if its task belongs to another app."""

    def may_publish_again(self, ref: JobRef, tag: str, row: int) -> bool:
        """Return whether a message that was lost may be published again: a second delivery is vetoed or allowed."""

    def resend(self, ref: JobRef, message: str) -> bool:
        """Publish the message of a part of a replacement again. Return False if it belongs to another app.

        Raises: what the broker raises.
        """

    def publish(self, ref: JobRef, decided: tuple[str, ...]) -> int:
        """Publish the callbacks of decided latches. Return the number of published callbacks."""

    def finish_rerun(self, job: JobRecord) -> bool:
        """Reset the rows that an interrupted rerun has chosen. Return False if the job belongs to another app."""

    def publish_messages(
        self, job: JobRecord, outbox: OutboxState, dead: Collection[str], ended: Collection[str]
    ) -> int | None:
        """Publish the messages of a job that are due, and those that dead publishers had claimed. Return their number.

        Args:
            ended: publishers that had published what they had claimed.

        Returns: None if the claims are left to another sweep: the job belongs to another app, or the store failed.
        """


@dataclass(slots=True)
class SweepReport:
    """Counts of what a sweep did.

    Attributes:
        marked: cells marked as LOST.
        requeued: messages that became due again, and parts of replacements that were published again.
        callbacks: jobs whose overdue callbacks were published.
        published: messages of rows that were due, also those that became due again in this sweep.
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
    """

    def __init__(
        self,
        store: Outbox,
        actions: SweepActions,
        *,
        lease: float,
        max_lost: int,
    ) -> None:
        self._store = store
        self._actions = actions
        self._lease = round(lease * 1_000_000)
        self._renewal = self._lease // leases.RENEWALS
        self._max_lost = max_lost
        self._report = SweepReport()
        self._publishers = Publishers({}, self._lease)
        self._lost = LostMessages(store, actions, self._lease, 0)
        self._left: set[str | None] = set()
        """The workers with attempts, or claims of their publishers, that this sweep has left."""
        self._has_unread_claims = False

    def run(self) -> SweepReport:
        """Sweep once. An error of one job is logged, and the other jobs are still swept.

        Raises: StoreUnavailable; StoreError – a list cannot be read.
        """
        now = self._store.now()
        records = leases.each_worker(self._store)
        known = {each.worker_id: ListedCells.from_record(each, now, self._renewal) for each in records}
        self._publishers = Publishers(known, self._lease)
        overdue = requeued.Overdue(self._store, self._lease, now)
        for attempt in self._store.list_open_attempts():
            if not attempt.cell.open:
                if overdue.includes(attempt):
                    self._guarded(partial(self._end_requeued, attempt), attempt.ref)
                continue
            is_lost = self._is_lost(attempt, known.get(attempt.cell.owner or ""), now)
            if is_lost and not self._guarded(partial(self._reclaim_attempt, attempt), attempt.ref):
                self._left.add(attempt.cell.owner)
        dead = {each: self._reclaim_received(each) for each, worker in known.items() if worker.gone_at <= now}
        for worker_id, worker in known.items():
            if worker.gone_at > now and worker.takes_nothing:
                self._return_received(worker_id)
        self._lost = LostMessages(self._store, self._actions, self._lease, now)
        self._sweep_due_jobs(now)  # it needs the records of dead workers
        self._end_lost_messages()
        for worker_id, left in dead.items():
            if left is not None:
                self._drop(worker_id, *left)
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

    def _end_requeued(self, attempt: OpenAttempt) -> None:
        """Make the message due again that the broker has dropped, or end its cell if that happened too often."""
        cell, place = attempt.cell, (attempt.tag, attempt.task_index)
        if cell.losses + 1 >= self._max_lost:
            self._write(attempt.ref, requeued.rejected(*place, cell))
            self._report.marked += 1
        else:
            self._make_due(attempt.ref, requeued.sent_again(*place, cell))

    def _reclaim_attempt(self, attempt: OpenAttempt) -> bool:
        """Mark a lost attempt or publish its message again. Return whether it needs no further sweep."""
        cell = attempt.cell
        record, now = self._store.get_worker(cell.owner or ""), self._store.now()
        worker = None if record is None else ListedCells.from_record(record, now, self._renewal)
        if not self._is_lost(attempt, worker, now):
            return True
        ref, place = attempt.ref, (attempt.tag, attempt.task_index)
        if self._actions.finish_if_succeeded(attempt):
            return True
        stopped = leases.was_stopped(record, leases.cell_name(ref, *place), cell.began_at, now)
        again = self._actions.runs_again(attempt)
        if again is None:
            return False
        if not again or (not stopped and cell.losses + 1 >= self._max_lost):
            most = None if stopped else self._max_lost
            decided = attempts.mark_lost(self._store, ref, *place, cell, new_event_id(), max_lost=most)
            self._report.marked += 1
            if decided:
                self._actions.publish(ref, decided)
            return True
        message = f"sent again: its worker {cell.owner} {'has stopped' if stopped else 'is dead'}"
        lost = Write.sent_back(*place, message, attempt=cell.attempt, is_open=True, counts_as_loss=not stopped)
        self._make_due(ref, lost)
        return True

    def _make_due(self, ref: JobRef, back: Write) -> None:
        """Make a message due again. That of a callback becomes due with its latch."""
        if back.task_index == CALLBACK_ROW:
            completion.make_due(self._store, ref, back.tag)
        self._write(ref, back)
        self._report.requeued += 1

    def _reclaim_received(self, worker_id: str) -> _Reclaimed | None:
        """Make the messages due again that a dead worker had received.

        Returns: its report, and the rows and parts that need another sweep; None if the worker is alive, or its record
            is unreadable or gone.
        """
        worker = self._store.get_worker(worker_id)
        if worker is None or worker.lease_until > self._store.now():
            return None
        report = Report.from_record(worker)
        if not report.readable:
            return None
        because = f"received by worker {worker_id}, which is dead"
        received = [] if self._actions.broker_redelivers else [*report.received]
        left = [row for row in received if not self._guarded(partial(self._return_row, row, because), row.ref)]
        parts = [row for row in report.parts if not self._guarded(partial(self._reclaim_part, row, worker_id), row.ref)]
        return replace(report, received=[*report.received]), left, parts

    def _drop(self, worker_id: str, report: Report, received: list[Received], parts: list[Received]) -> None:
        """Delete the record of a dead worker, or reduce it to the rows that need another sweep."""
        if not (received or parts or worker_id in self._left or self._has_unread_claims):
            self._store.drop_worker(worker_id)
            self._report.workers += 1
        elif [*report.received, *report.parts] != [*received, *parts]:
            left = replace(report, received=received, parts=parts, processes=())  # they were not seen at this time
            self._store.put_worker(worker_id, left.to_json(), 0)

    def _reclaim_part(self, row: Received, worker_id: str) -> bool:
        """Publish a part of a replacement again that ran in a dead worker, or end the row that waits for it.

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
        """Make the messages due again that a live worker has received and does not begin, each of them once."""
        worker = self._store.get_worker(worker_id)
        because = f"received by worker {worker_id}, whose main loop is blocked"
        for row in Report.from_record(worker).received if worker else ():
            self._guarded(partial(self._return_row, row, because), row.ref)

    def _return_row(self, row: Received, because: str) -> None:
        cell = self._store.get_cell(row.ref, row.tag, row.task_index) or Cell()
        if not (cell.open or cell.final or row.delivery < cell.delivery):
            message = f"sent again: {because}"
            back = Write.sent_back(row.tag, row.task_index, message, attempt=cell.attempt)
            back.kept = row.message
            back.event_id = (
                f"{row.task_index}.{row.tag}.{cell.delivery.publication}.back"  # of several sweeps, one counts
            )
            self._make_due(row.ref, back)

    def _end_lost_messages(self) -> None:
        for lost in self._lost.finish():
            for row in lost.rows:
                self._guarded(partial(self._end_lost, lost, row), lost.ref)

    def _end_lost(self, lost: Lost, row: int) -> None:
        """Make a lost message due again, or end its cell as LOST if its task could run twice and must not."""
        cell, place = self._store.get_cell(lost.ref, lost.tag, row) or Cell(), (lost.tag, row)
        if not cell.waiting:
            return
        if self._actions.may_publish_again(lost.ref, *place):
            message = f"published again: its message was lost, queue {lost.queue!r} is empty"
            self._make_due(lost.ref, Write.sent_back(*place, message, attempt=cell.attempt))
        else:
            self._write(lost.ref, Write.lost(*place, f"its message was lost: queue {lost.queue!r} is empty"))
            self._report.marked += 1

    def _write(self, ref: JobRef, write: Write) -> None:
        """Write a cell and publish the callbacks of the latches that this decided."""
        decided = self._store.write(ref, write).decided
        if decided:
            self._actions.publish(ref, decided)

    def _resend(self, ref: JobRef, message: str) -> bool:
        """Publish the message of a part again and count it. Return False if it belongs to another app."""
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
        if job.generation.resetting:
            self._actions.finish_rerun(job)
        if job.publishes:
            self._publish_messages(job, now)

    def _publish_messages(self, job: JobRecord, now: int) -> None:
        """Publish the rows of a job that are due, unless its submitter is doing so."""
        try:
            outbox = self._store.get_outbox(job.ref)
        except StoreError:
            self._has_unread_claims = True
            raise
        if not job.cancelled:
            self._lost.look_at(job, outbox)
        fates = {name: self._publishers.fate(job, name, claim, now) for name, claim in outbox.claims.items()}
        dead = [name for name, fate in fates.items() if fate is Fate.DEAD]
        ended = [name for name, fate in fates.items() if fate is Fate.ENDED]
        if not (dead or ended or has_due(job, outbox)):
            return
        published = None
        try:
            published = self._actions.publish_messages(job, outbox, dead, ended)
        finally:
            if published is None:  # without the record of its worker, a publisher would count as ended
                self._left.update(name.partition("/")[0] for name in (*dead, *ended))
        self._report.published += published or 0

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
