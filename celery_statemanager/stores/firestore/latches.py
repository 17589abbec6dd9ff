"""Latches: decided after the commit that made their condition true, by compare-and-set on the job's document.

Why that is exact. A cell that ends is counted in its own commit, so whoever asks last finds all counted. A cell that
had ended and begins again writes the job's document in its own commit, so a decision that was computed before does not
hold. Cancelling writes the job first and asks then; a begin writes its cell first and then looks at the job.
"""

from __future__ import annotations

from dataclasses import replace

from celery_statemanager import aggregate
from celery_statemanager.errors import JobNotFound
from celery_statemanager.records import Cell, JobRecord, JobRef, Tally
from celery_statemanager.stores.firestore import requests, tallies
from celery_statemanager.stores.firestore.database import Database
from celery_statemanager.stores.firestore.documents import KnownJob
from celery_statemanager.stores.firestore.errors import Deadline, PreconditionFailed, Transient
from celery_statemanager.stores.firestore.jobs import Jobs, new_operation
from celery_statemanager.stores.firestore.view import Done, Place
from celery_statemanager.transitions import tally_of


class Latches:
    """Decides."""

    def __init__(self, database: Database, jobs: Jobs) -> None:
        self._database = database
        self._jobs = jobs

    def after(self, ref: JobRef, place: Place, cell: Cell, done: Done | None) -> tuple[str, ...]:
        """Decide what a step has made true, or one before it that was cut off; () if the job was deleted meanwhile.

        Args:
            cell: the cell as it is after the step.
            done: what the step changed; None for a repetition or a refusal.
        """
        known = self._jobs.recent(ref) if done is None else done.job
        if known is None or not _may_decide(known.job, place, cell) or (done is None and known.job.settled):
            return ()
        changed = {place: cell} if done is None else {at: new for at, (_, new) in done.puts.items()}
        failed = any(tally_of(new).failed_final for at, new in changed.items() if tallies.is_expected(known.job, *at))
        try:
            return self.decide(ref, None, self._database.deadline(), failed=failed)
        except JobNotFound:
            return ()

    def decide(
        self, ref: JobRef, known: KnownJob | None, deadline: Deadline, *, failed: bool = False
    ) -> tuple[str, ...]:
        """Decide what the cells say by now.

        Args:
            known: the job as it was read or written a moment ago.
            failed: one of its cells has failed for good.
        """
        operation = new_operation()
        names: tuple[str, ...] = ()
        while True:
            if known is None:
                known = self._jobs.current(ref, deadline)
                if operation in known.operations:
                    return names
            job = known.job
            open_latches = {name for name, latch in job.latches.items() if latch.decided_at is None}
            if job.plan is None or not open_latches or (open_latches == {"failure"} and not failed):
                return ()
            total = self.total(ref, deadline)
            names = aggregate.decisions(
                job, job.plan.expected, total._replace(failed_final=total.failed_final + failed)
            )
            if not names:
                return ()
            now = self._database.now()
            decided = job.with_latches(**{name: replace(job.latches[name], decided_at=now) for name in names})
            try:
                self._jobs.replace(known, decided, operation, deadline)
                return names
            except (PreconditionFailed, Transient) as error:
                deadline.pause(error)
            known = None

    def total(self, ref: JobRef, deadline: Deadline) -> Tally:
        """Sum the tallies of the expected columns: one read at any size."""
        shards = requests.select("tallies", ("expected", "==", True))
        sums = self._database.sums(self._database.names.run(ref), shards, tuple(tallies.DECISIVE.values()), deadline)
        return Tally()._replace(**{name: sums.get(stored, 0) for name, stored in tallies.DECISIVE.items()})


def _may_decide(job: JobRecord, place: Place, cell: Cell) -> bool:
    """Whether a cell has ended, or come to rest as a cancelled job waits for."""
    if job.plan is None or tally_of(cell).pending:
        return False
    return job.plan.expects(*place)
