"""Recover the work of dead processes: attempts, received rows, callbacks, messages (rules R15, R16, R19)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Protocol

from celery_statemanager import completion, leases, put_back, stalls
from celery_statemanager.at_work import AtWork
from celery_statemanager.errors import (
    AttemptSuperseded,
    JobCancelled,
    JobNotFound,
    StoreContended,
    StoreError,
    StoreUnavailable,
)
from celery_statemanager.indexset import IndexSet
from celery_statemanager.leases import Received, Report
from celery_statemanager.liveness import ListedCells
from celery_statemanager.lost_messages import MOST_ROWS, LostMessages
from celery_statemanager.models import Status
from celery_statemanager.publishers import Fate, Publishers, has_due
from celery_statemanager.queue_state import Queues
from celery_statemanager.reclaim import ReclaimActions, Reclaimer
from celery_statemanager.records import CALLBACK_ROW, JobKey, JobRecord, JobRef, OpenAttempt, OutboxState
from celery_statemanager.stores.capabilities import Outbox

logger = logging.getLogger(__name__)

_Reclaimed = tuple[Report, list[Received], list[Received]]


class SweepActions(Queues, ReclaimActions, Protocol):
    """The actions of a sweep outside the store. What belongs to another app is left to that app's sweep."""

    broker_redelivers: bool
    """Whether the broker delivers at once what a dead worker had received."""

    def stop(self, ref: JobRef, decided: tuple[str, ...]) -> None:
        """Revoke the messages of a cancelled job, and publish the callbacks of the latches that this decided."""

    def complete_rerun(self, job: JobRecord) -> None:
        """Complete an interrupted rerun, unless the job belongs to another app."""

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
        stalled: attempts that were found stalled.
    """

    marked: int = 0
    requeued: int = 0
    callbacks: int = 0
    published: int = 0
    workers: int = 0
    stalled: int = 0

    def __bool__(self) -> bool:
        return any((self.marked, self.requeued, self.callbacks, self.published))


class Sweep:
    """One pass over a whole store. Each action is a compare-and-set, so concurrent sweeps are harmless.

    Args:
        lease: seconds for which a worker counts as alive after its last report, by the store's clock.
        max_lost: the number of losses at which a cell becomes LOST regardless of its policy.
    """

    def __init__(self, store: Outbox, actions: SweepActions, *, lease: float, max_lost: int) -> None:
        self._store = store
        self._actions = actions
        self._lease = round(lease * 1_000_000)
        self._renewal = self._lease // leases.RENEWALS
        self._reclaimer = Reclaimer(store, actions, self._lease, max_lost)
        self._report = SweepReport()
        self._publishers = Publishers({}, self._lease)
        self._lost: LostMessages  # from the time of the sweep on
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
        gone_at = max((worker.gone_at for worker in known.values() if worker.gone_at <= now), default=0)
        at_work = AtWork(self._store, self._lease, now, gone_at, sends_ahead=self._actions.sends_ahead)
        requeued = self._look_at_attempts(known, at_work, now)
        dead = {each: self._reclaim_received(each) for each, worker in known.items() if worker.gone_at <= now}
        for worker_id, worker in known.items():
            if worker.gone_at > now and worker.takes_nothing:
                self._return_received(worker_id)
        self._lost = LostMessages(self._store, self._actions, self._lease, now, at_work)
        self._sweep_due_jobs(now)  # it needs the records of dead workers
        find = cache(self._store.get_job)
        for attempt in requeued:
            self._guarded(partial(self._look_at_requeued, attempt, find), attempt.ref)
        self._end_lost_messages()
        for worker_id, left in dead.items():
            if left is not None:
                self._drop(worker_id, *left)
        self._store.drop_expired_drafts()
        return replace(self._report, marked=self._reclaimer.marked, requeued=self._reclaimer.requeued)

    def _look_at_attempts(self, known: dict[str, ListedCells], at_work: AtWork, now: int) -> list[OpenAttempt]:
        """Recover lost attempts, and mark those that have stalled.

        Returns: attempts whose tasks requeued their messages at least a lease ago.
        """
        requeued: list[OpenAttempt] = []
        for attempt in self._store.list_open_attempts():
            at_work.add(attempt)
            worker = known.get(attempt.cell.owner or "")
            if not attempt.cell.open:
                if attempt.cell.timestamp <= now - self._lease and len(requeued) < MOST_ROWS:
                    requeued.append(attempt)
            elif not self._reclaimer.is_lost(attempt, worker, now):
                self._mark_if_stalled(attempt, worker, now)
            elif not self._guarded(partial(self._reclaimer.reclaim_attempt, attempt), attempt.ref):
                self._left.add(attempt.cell.owner)
        return requeued

    def _look_at_requeued(self, attempt: OpenAttempt, find: Callable[[JobKey], JobRecord]) -> None:
        """Look whether a requeued message is lost. That of a cancelled job is not needed any more."""
        job = find(attempt.ref.key)
        if job.ref != attempt.ref:
            return
        if job.cancelled:
            self._reclaimer.end_requeued(attempt)
        else:
            self._lost.look_at_requeued(job, attempt)

    def _mark_if_stalled(self, attempt: OpenAttempt, worker: ListedCells | None, now: int) -> None:
        since = stalls.stalled_since(attempt, worker, now)
        if since is not None:
            self._guarded(partial(self._mark_stalled, attempt, since), attempt.ref)

    def _mark_stalled(self, attempt: OpenAttempt, since: int) -> None:
        stalls.mark(self._store, attempt.ref, attempt.tag, attempt.task_index, attempt.cell, since)
        self._report.stalled += 1

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
        left = [
            row
            for row in received
            if not self._guarded(partial(self._reclaimer.return_received, row, because), row.ref)
        ]
        parts = [
            row
            for row in report.parts
            if not self._guarded(partial(self._reclaimer.reclaim_part, row, worker_id), row.ref)
        ]
        return replace(report, received=[*report.received]), left, parts

    def _drop(self, worker_id: str, report: Report, received: list[Received], parts: list[Received]) -> None:
        """Delete the record of a dead worker, or reduce it to the rows that need another sweep."""
        if not (received or parts or worker_id in self._left or self._has_unread_claims):
            put_back.drop_worker(self._store, worker_id)
            self._report.workers += 1
        elif [*report.received, *report.parts] != [*received, *parts]:
            left = replace(report, received=received, parts=parts, processes=())  # they were not seen at this time
            self._store.put_worker(worker_id, left.to_json(), 0)

    def _return_received(self, worker_id: str) -> None:
        """Make the messages due again that a live worker has received and does not begin, each of them once."""
        worker = self._store.get_worker(worker_id)
        because = f"received by worker {worker_id}, whose main loop is blocked"
        for row in Report.from_record(worker).received if worker else ():
            self._guarded(partial(self._reclaimer.return_received, row, because), row.ref)

    def _end_lost_messages(self) -> None:
        for each in self._lost.cells_to_read():
            self._guarded(partial(self._lost.look_at_cell, each), each.job.ref)
        for lost in self._lost.finish():
            for row in lost.rows:
                self._guarded(partial(self._reclaimer.end_lost_message, lost, row), lost.ref)

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
        if job.has_expired(now):
            self._actions.stop(job.ref, completion.expire(self._store, job.ref))
            return
        grace = now - self._renewal
        overdue = tuple(name for name, latch in job.latches.items() if latch.due and (latch.decided_at or 0) < grace)
        if overdue:
            self._report.callbacks += self._actions.publish(job.ref, overdue) > 0
        self._note_ended_stages(job)
        self._lost.look_at_callbacks(job)
        if job.generation.rows_to_reset:
            self._actions.complete_rerun(job)
        if job.publishes:
            self._publish_messages(job, now)

    def _note_ended_stages(self, job: JobRecord) -> None:
        """Record the stages of a body whose end is not recorded, and publish what follows.

        The process in which a stage ended may have died. One that a sweep has ended has errbacks that nobody calls.
        """
        for name, latch in job.latches.items():
            if not latch.is_body or latch.place is None:
                continue
            tag = job.callback_tag(name)
            cell = self._store.get_cell(job.ref, tag, CALLBACK_ROW)
            if cell is not None and cell.final:
                by_us = cell.status in {Status.LOST, Status.REJECTED}
                decided = completion.record_end(self._store, job.ref, tag, cell, calls_errbacks=by_us)
                self._report.callbacks += bool(decided) and self._actions.publish(job.ref, decided) > 0

    def _publish_messages(self, job: JobRecord, now: int) -> None:
        """Publish the rows of a job that are due, unless its submitter is doing so."""
        try:
            outbox = self._store.get_outbox(job.ref)
        except StoreError:
            self._has_unread_claims = True
            raise
        fates = {name: self._publishers.fate(job, name, claim, now) for name, claim in outbox.claims.items()}
        dead = [name for name, fate in fates.items() if fate is Fate.DEAD]
        ended = [name for name, fate in fates.items() if fate is Fate.ENDED]
        self._lost.look_at(job, outbox, IndexSet().union(*(outbox.claims[name].rows for name in dead)))
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
