"""Changes of cells: the step, the checks after it, the latches that it decides, and the rows that it claims."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from celery_statemanager.errors import JobCancelled, StateManagerError, StoreError, StoreUnavailable
from celery_statemanager.models import FINISHED, Status
from celery_statemanager.records import (
    Begin,
    BeginReply,
    Cell,
    Claimed,
    JobRecord,
    JobRef,
    Reset,
    Verdict,
    Write,
    WriteReply,
)
from celery_statemanager.stores import steps
from celery_statemanager.stores.firestore import requests
from celery_statemanager.stores.firestore.claims import NOTHING, Claims, Found
from celery_statemanager.stores.firestore.database import Database
from celery_statemanager.stores.firestore.documents import remember
from celery_statemanager.stores.firestore.jobs import JobDocuments
from celery_statemanager.stores.firestore.latches import Latches
from celery_statemanager.stores.firestore.step import StepRunner
from celery_statemanager.stores.firestore.timings import in_microseconds
from celery_statemanager.stores.firestore.view import StepResult, StepTransaction

MAX_INTERRUPTED = 1_000
"""Failed calls that are remembered until they are repeated."""


class Writer:
    """Writes cells, begins attempts and resets rows.

    A cancellation first writes the job and then counts the open cells. A begin first writes its cell and then reads
    the job. Therefore one of them sees the other.
    """

    def __init__(
        self, database: Database, jobs: JobDocuments, steps: StepRunner, latches: Latches, claims: Claims
    ) -> None:
        self._database = database
        self._jobs = jobs
        self._steps = steps
        self._latches = latches
        self._claims = claims
        self._interrupted: dict[tuple[JobRef, str], None] = {}
        """The events of calls that failed and may have ended a cell without a claim, so that a repetition claims."""

    def write(self, ref: JobRef, write: Write) -> WriteReply:
        """Write a cell. Raises: the errors of ``Store.write``."""
        try:
            reply, result = self._write(ref, write)
        except StoreUnavailable:
            if write.publisher is not None:
                remember(self._interrupted, (ref, write.event_id), None, MAX_INTERRUPTED)
            raise
        if result is not None and write.begin is not None and not write.ends_attempt:
            ended = self._ended_meanwhile(ref, result)
            if ended is not None:
                with suppress(_RunsAgain):
                    self._take_back(ref, write.begin, reply.cell, ended)
                    raise JobCancelled(ended.job_id, ended.cancelled.reason if ended.cancelled else None)
        return reply

    def begin(self, ref: JobRef, begin: Begin) -> BeginReply:
        """Begin an attempt. Raises: the errors of ``Store.begin``."""
        key, deadline = (begin.tag, begin.task_index), self._database.deadline()
        now = self._database.now()
        reply, result = self._steps.run(ref, key, lambda tx: steps.begin(tx, begin, now), deadline, begins=True)
        if reply.verdict is not Verdict.PAUSED:
            ended = None if result is None else self._ended_meanwhile(ref, result)
            if ended is not None and reply.verdict is Verdict.BEGUN:
                with suppress(_RunsAgain):
                    return self._take_back(ref, begin, reply.cell, ended)
            reply.decided = self._latches.after(ref, key, reply.cell, result)
        self._record_activity(ref, result)
        return reply

    def reset_row(self, ref: JobRef, reset: Reset) -> bool:
        """Reset a row. Raises: JobNotFound."""
        key, deadline = (reset.tag, reset.task_index), self._database.deadline()
        was_reset, result = self._steps.run(ref, key, lambda tx: steps.reset_row(tx, reset), deadline, resets=True)
        self._record_activity(ref, result)
        return was_reset

    def _write(
        self, ref: JobRef, write: Write, step: Callable[[StepTransaction, Write], WriteReply] = steps.write
    ) -> tuple[WriteReply, StepResult | None]:
        key, deadline = (write.tag, write.task_index), self._database.deadline()
        begins = write.begin is not None
        reply, result = self._steps.run(ref, key, lambda tx: step(tx, write), deadline, begins=begins)
        publisher = write.publisher if self._may_claim(ref, write, reply, result) else None
        found = self._claims.read_after_end(ref, publisher) if publisher is not None else None
        reply.decided = self._latches.after(ref, key, reply.cell, result, found and found.counts)
        if publisher is not None and "settled" not in reply.decided:
            may_claim = reply.changed or (ref, write.event_id) in self._interrupted
            given = None if reply.decided else found  # a decided latch has changed the job
            claimed = self._claim(ref, write, given, may_claim=may_claim, decided=bool(reply.decided))
            reply.claimed, reply.again = claimed.rows, claimed.again
        elif result is None and _claims_next(write, reply):
            reply.claimed = reply.again = self._claims.outboxes.next_claim(ref, write.event_id)
        self._interrupted.pop((ref, write.event_id), None)
        self._record_activity(ref, result)
        return reply, result

    def _may_claim(self, ref: JobRef, write: Write, reply: WriteReply, result: StepResult | None) -> bool:
        """Return whether a write ended a cell of a job with a window, or repeats one that did."""
        document = self._jobs.recent(ref) if result is None else result.job
        makes_room = reply.cell.final and write.task_index >= 0 and not _claims_next(write, reply)
        return makes_room and document is not None and document.job.has_window

    def _claim(self, ref: JobRef, write: Write, found: Found | None, *, may_claim: bool, decided: bool) -> Claimed:
        """Claim rows after the end of a cell.

        Args:
            may_claim: False to return only what the same write has claimed before.
        """
        try:
            return self._claims.claim_after_end(ref, write, found, may_claim=may_claim)
        except StoreUnavailable:
            if not decided:
                raise  # the caller repeats the write
            return NOTHING

    def _ended_meanwhile(self, ref: JobRef, result: StepResult) -> JobRecord | None:
        """Return the job if it was cancelled or settled after the step read it. Raises: JobNotFound."""
        job = self._jobs.current(ref, self._database.deadline()).job
        before = result.job.job
        ended = (job.cancelled and not before.cancelled) or (job.settled and not before.settled)
        return job if ended and all(row >= 0 for _, row in result.puts) else None

    def _take_back(self, ref: JobRef, begin: Begin, cell: Cell, job: JobRecord) -> BeginReply:
        """End an attempt that began after its job had ended. Its task has not run. Raises: _RunsAgain."""
        end = Write(
            tag=begin.tag,
            task_index=begin.task_index,
            status=int(Status.CANCELLED),
            event_id=f"{begin.event_id}-taken-back",
            message=job.cancelled.reason if job.cancelled else None,
            attempt=cell.attempt,
            keep_payload=True,
            ends_attempt=True,
        )
        reply, _ = self._write(ref, end, _write_if_ended)
        return BeginReply(Verdict.CANCELLED if job.cancelled else Verdict.CLOSED, reply.cell, reply.decided)

    def _record_activity(self, ref: JobRef, result: StepResult | None) -> None:
        """Update the job's last activity after a step, if it is too old. After a failure, the next step tries again."""
        if result is None or result.job.foreign:
            return
        job, now = result.job.job, self._database.now()
        revives = job.tombstoned_at is not None and job.last_activity <= job.tombstoned_at
        period = in_microseconds(self._database.timings.activity_every)
        if now - job.last_activity < period and not revives:
            return
        result.job.job = replace(job, last_activity=now)
        write = requests.touch_time(self._database.names.job(ref.key), "lastActivity")
        with suppress(StoreError):
            self._database.commit([write], self._database.deadline())


class _RunsAgain(StateManagerError):
    """A rerun has begun before an attempt was taken back. The attempt is part of it."""


def _write_if_ended(tx: StepTransaction, write: Write) -> WriteReply:
    """Write a cell of a job that is cancelled or has settled. Raises: _RunsAgain."""
    if not (tx.job.cancelled or tx.job.settled):
        raise _RunsAgain
    return steps.write(tx, write)


def _claims_next(write: Write, reply: WriteReply) -> bool:
    """Return whether a write claims its own row for the next stage, which its step does."""
    return write.publisher is not None and write.next_is_due and reply.cell.final and reply.cell.status == FINISHED
