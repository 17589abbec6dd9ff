"""Run the rows of a job again that have ended without success, as a new generation of the job (rule R20)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace

from celery_statemanager.deadline import Deadline
from celery_statemanager.errors import AttemptSuperseded, StoreContended, StoreError
from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import Status
from celery_statemanager.records import (
    Cell,
    ClaimRequest,
    Column,
    JobRecord,
    JobRef,
    Reset,
    Tally,
    Write,
    new_event_id,
)
from celery_statemanager.retention import CHANGE_TIMEOUT, change_job
from celery_statemanager.stores.capabilities import Outbox

FirstStage = Callable[[int, str], str]
"""Return the stage from which a row runs again, given the row and the stage that has not succeeded."""


@dataclass(frozen=True, slots=True)
class RerunReport:
    """The rows of a rerun.

    Attributes:
        rows: the rows that run again.
        skipped: the wanted rows that do not: they have finished, run, or wait to begin.
    """

    rows: IndexSet
    skipped: IndexSet


def choose(store: Outbox, ref: JobRef, wanted: IndexSet | None) -> RerunReport:
    """Return which of the wanted rows would run again; None wants all that have ended without success.

    Raises: JobNotFound, StoreError.
    """
    return _choose(store, *store.column_summaries(ref, indexes=wanted is None), wanted)


def begin(store: Outbox, ref: JobRef, wanted: IndexSet | None, *, timeout: float = CHANGE_TIMEOUT) -> RerunReport:
    """Record a new generation in which the chosen rows run again, unless there are none. ``finish`` must follow.

    On a cancelled job, the rows that are not chosen and never began are marked CANCELLED first, because the job itself
    is no longer cancelled afterwards.

    Raises: JobNotFound; StoreContended; StoreError.
    """
    deadline = Deadline(timeout)
    while True:
        job, columns = store.column_summaries(ref, indexes=wanted is None)
        report = _choose(store, job, columns, wanted)
        if not report.rows:
            return report
        if job.cancelled is not None:
            _end_others(store, job, report.rows)
        failures = sum(column.tally.failures for column in columns)
        if store.update_job(job.with_generation(report.rows, failures)) is not None:
            return report
        deadline.pause(StoreError(f"job {ref.key.job_id!r} was changed by other processes at each try"), StoreContended)


def finish(store: Outbox, job: JobRecord, first_stage: FirstStage) -> tuple[str, ...]:
    """Reset the rows that a new generation has chosen, and return the latches that this decided.

    Any number of processes may do this at once, and repeat it after an interruption: each row is reset once.

    Raises: JobNotFound; StoreContended; StoreError.
    """
    number = job.generation.number
    for row in job.generation.resetting:
        tag = _unfinished_stage(store, job, row)
        if tag is not None:
            reset = Reset(tag=first_stage(row, tag), task_index=row, generation=number)
            store.reset_row(job.ref, reset)

    def ended(now: JobRecord) -> JobRecord | None:
        if now.generation.number != number or not now.generation.resetting:
            return None
        return replace(now, generation=replace(now.generation, resetting=IndexSet()))

    return change_job(store, job.ref, ended) or ()


def _choose(store: Outbox, job: JobRecord, columns: list[Column], wanted: IndexSet | None) -> RerunReport:
    if wanted is not None:
        rows = _ended(store, job, wanted)
        return RerunReport(rows, wanted.without(rows))
    candidates = IndexSet().union(*(part or IndexSet() for each in columns for part in (each.failed, each.not_run)))
    if job.cancelled is not None:
        candidates = candidates.union(*(each.missing or IndexSet() for each in columns))
    total = Tally()
    for column in columns:
        total = total.plus(column.tally)
    rows = _ended(store, job, candidates) if total.pending else candidates
    return RerunReport(rows, candidates.without(rows))


def _ended(store: Outbox, job: JobRecord, rows: Iterable[int]) -> IndexSet:
    """Return those of some rows that have ended without success."""
    return IndexSet(row for row in rows if _ended_stage(store, job, row) is not None)


def _ended_stage(store: Outbox, job: JobRecord, row: int) -> str | None:
    """Return the stage at which a row has ended without success; None if it has finished or goes on."""
    for tag in job.plan.stages(row) if job.plan else ():
        cell = store.get_cell(job.ref, tag, row) or Cell()
        if not cell.succeeded:
            return tag if cell.final or (cell.waiting and job.cancelled is not None) else None
    return None


def _unfinished_stage(store: Outbox, job: JobRecord, row: int) -> str | None:
    """Return the first stage of a row that has not succeeded. A row with one stage is not read."""
    stages = job.plan.stages(row) if job.plan else ()
    if len(stages) == 1:
        return stages[0]
    return next((tag for tag in stages if not (store.get_cell(job.ref, tag, row) or Cell()).succeeded), None)


def _end_others(store: Outbox, job: JobRecord, chosen: IndexSet) -> None:
    """Mark the rows of a cancelled job as CANCELLED that never began and are not chosen."""
    reason = job.cancelled.reason if job.cancelled else None
    store.claim(job.ref, ClaimRequest(publisher=f"rerun/{new_event_id()}", limit=0, drops_rest=True))
    _, columns = store.column_summaries(job.ref, indexes=True)
    for row in IndexSet().union(*(each.missing or IndexSet() for each in columns)).without(chosen):
        tag = _ended_stage(store, job, row)
        if tag is not None:
            with suppress(AttemptSuperseded):
                store.write(job.ref, Write.never_begun(tag, row, int(Status.CANCELLED), reason or ""))
