"""Latches are decided after the commit that makes their condition true, by compare-and-set on the job's document.

Why that is exact. A cell that ends is counted in its own commit, so the process that sums last finds all cells counted.
A final cell that begins again writes the job's document in its own commit, so a decision computed before that fails.
While rows are reset, no latch is decided, and the commit of a reset requires that this is still so.
A cancellation first writes the job and then sums; a begin first writes its cell and then reads the job. Therefore the
decision that cancels a job because of its policy does not settle it: the sums are read again afterwards.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

from celery_statemanager import aggregate
from celery_statemanager.errors import JobNotFound, StoreError
from celery_statemanager.records import Cell, JobRecord, JobRef, Tally
from celery_statemanager.stores.firestore import requests, tallies
from celery_statemanager.stores.firestore.database import Database
from celery_statemanager.stores.firestore.documents import JobDocument
from celery_statemanager.stores.firestore.errors import CallDeadline, PreconditionFailed, Transient
from celery_statemanager.stores.firestore.jobs import JobDocuments, new_operation
from celery_statemanager.stores.firestore.view import StepResult
from celery_statemanager.stores.transactional import CellKey
from celery_statemanager.transitions import tally_of


class JobCounts(NamedTuple):
    """A job, and the sum of its tallies as of the same time."""

    document: JobDocument
    total: Tally


class Latches:
    """Decisions about the latches of jobs."""

    def __init__(self, database: Database, jobs: JobDocuments) -> None:
        self._database = database
        self._jobs = jobs

    def after(
        self, ref: JobRef, key: CellKey, cell: Cell, result: StepResult | None, counted: JobCounts | None = None
    ) -> tuple[str, ...]:
        """Decide the latches after a step, including those that a dead process left undecided.

        Return () if the job was deleted.

        Args:
            cell: the cell as it is after the step.
            result: the changes of the step; None if it changed nothing.
            counted: the job and its sums, if they were read after the step.
        """
        document = self._jobs.recent(ref) if result is None else result.job
        if document is None or (result is None and document.job.settled):
            return ()
        job = document.job
        if job.plan is None or tally_of(cell).pending or not job.plan.expects(*key):
            return ()
        try:
            document, total = counted or (None, None)
            return self.decide(ref, document, self._database.deadline(), failed=cell.has_failed, total=total)
        except JobNotFound:
            return ()

    def decide(
        self,
        ref: JobRef,
        document: JobDocument | None,
        deadline: CallDeadline,
        *,
        failed: bool = False,
        total: Tally | None = None,
    ) -> tuple[str, ...]:
        """Decide the latches whose conditions the tallies fulfil, and return their names.

        Args:
            document: the job as it was just read or written; None reads it.
            failed: whether a cell has failed. If not, the sums of a job that has succeeded are not read again.
            total: the sums as of the time of ``document`` or later; None reads them.
        """
        operation = new_operation()
        names: tuple[str, ...] = ()
        while True:
            if document is None:
                document = self._jobs.current(ref, deadline)
                if operation in document.operations:
                    return names
            job = document.job
            undecided = {name for name, latch in job.latches.items() if latch.decided_at is None}
            if not failed:
                undecided.discard("failure")
            if job.plan is None or job.generation.rows_to_reset or not undecided:
                return ()
            total, now = total or self.total(job, deadline), self._database.now()
            stopped = aggregate.stopped(job, total, now)
            names = aggregate.decisions(stopped, job.plan.expected, total)
            if stopped is not job:
                names = tuple(name for name in names if name != "settled")
            if not names:
                return ()
            try:
                written = self._jobs.replace(document, stopped.with_decided(names, now), operation, deadline)
            except (PreconditionFailed, Transient) as error:
                deadline.pause(error)
                document = total = None
                continue
            if stopped is not job:
                with suppress(StoreError, JobNotFound):  # the sweep decides it
                    names += self.decide(ref, written, deadline)
            return names

    def total(self, job: JobRecord, deadline: CallDeadline, *, at: Any = None) -> Tally:
        """Sum the tallies of the expected columns, for the price of one read at any size.

        A job with ``Policy.max_failed`` whose cells have all ended costs two.

        Args:
            at: the time as of which they are read; None for the present.
        """
        shards = requests.select("tallies", ("expected", "==", True))
        run = self._database.names.run(job.ref)
        sums = self._database.sums(run, shards, tallies.decisive(job), deadline, at=at)
        if job.policy.max_failed is not None and job.plan is not None and sums.get("ended", 0) >= job.plan.expected:
            sums |= self._database.sums(run, shards, tallies.TOLERANT_AT_END, deadline, at=at)
        return tallies.ShardCounts(**sums).tally()
