"""Rerun rows that have ended without success, as a new generation of their job (rule R20)."""

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
    Write,
    new_event_id,
)
from celery_statemanager.retention import CHANGE_TIMEOUT, change_job
from celery_statemanager.stores.capabilities import Outbox

FirstStage = Callable[[int, str], str]
"""Return the stage from which a row runs again, given the row and its first stage that has not succeeded."""


@dataclass(frozen=True, slots=True)
class RerunReport:
    """The rows of a rerun.

    Attributes:
        rows: the rows that run again.
        skipped: the requested rows that have finished, are running or are waiting to begin.
    """

    rows: IndexSet
    skipped: IndexSet


def choose_rows(store: Outbox, ref: JobRef, requested: IndexSet | None) -> RerunReport:
    """Return which of the requested rows a rerun would take; None requests all that have ended without success.

    Raises: JobNotFound, StoreError.
    """
    return _choose(store, *store.column_summaries(ref, indexes=requested is None), requested)


def begin_generation(
    store: Outbox,
    ref: JobRef,
    requested: IndexSet | None,
    complete: Callable[[JobRecord], object],
    *,
    timeout: float = CHANGE_TIMEOUT,
) -> RerunReport:
    """Record a new generation with the rows that run again, unless there are none. ``reset_rows`` must follow.

    On a cancelled job, CANCELLED is written to the other rows that never began, because the job itself is no longer
    cancelled afterwards.

    Args:
        complete: completes an earlier rerun, given the job. No second rerun begins before.

    Raises: JobNotFound; StoreContended; StoreError.
    """
    deadline = Deadline(timeout)
    while True:
        job, columns = store.column_summaries(ref, indexes=requested is None)
        if job.generation.rows_to_reset:
            complete(job)
            continue
        report = _choose(store, job, columns, requested)
        if not report.rows:
            return report
        if job.cancelled is not None:
            _cancel_other_rows(store, job, report.rows)
        failures = sum(column.tally.failures for column in columns)
        if store.update_job(job.with_generation(report.rows, failures)) is not None:
            return report
        error = StoreError(f"job {ref.key.job_id!r} was changed by other processes at each try; try again")
        deadline.pause(error, StoreContended)


def reset_rows(store: Outbox, job: JobRecord, first_stage: FirstStage) -> tuple[str, ...]:
    """Reset the rows that a new generation has chosen, and return the latches that this decided.

    Any number of processes may do this at once, and repeat it after an interruption: each row is reset once.

    Raises: JobNotFound; StoreContended; StoreError.
    """
    number = job.generation.number
    for row in job.generation.rows_to_reset:
        tag = _first_unsuccessful_stage(store, job, row)
        if tag is not None:
            store.reset_row(job.ref, Reset(tag=first_stage(row, tag), task_index=row, generation=number))

    def without_resets(now: JobRecord) -> JobRecord | None:
        if now.generation.number != number or not now.generation.rows_to_reset:
            return None
        return replace(now, generation=replace(now.generation, rows_to_reset=IndexSet()))

    return change_job(store, job.ref, without_resets) or ()


def _choose(store: Outbox, job: JobRecord, columns: list[Column], requested: IndexSet | None) -> RerunReport:
    if requested is not None:
        rows = _rerunnable(store, job, requested)
        return RerunReport(rows, requested.without(rows))
    candidates = IndexSet().union(*(part or IndexSet() for each in columns for part in (each.failed, each.not_run)))
    if job.cancelled is not None:
        candidates = candidates.union(*(each.missing or IndexSet() for each in columns))
    has_pending = any(column.tally.pending for column in columns)
    rows = _rerunnable(store, job, candidates) if has_pending else candidates
    return RerunReport(rows, candidates.without(rows))


def _rerunnable(store: Outbox, job: JobRecord, rows: Iterable[int]) -> IndexSet:
    """Return those of some rows that have ended without success."""
    return IndexSet(row for row in rows if _failed_stage(store, job, row) is not None)


def _failed_stage(store: Outbox, job: JobRecord, row: int) -> str | None:
    """Return the stage at which a row has ended without success; None if it has finished or goes on."""
    for tag in job.plan.stages(row) if job.plan else ():
        cell = store.get_cell(job.ref, tag, row) or Cell()
        if not cell.succeeded:
            return tag if cell.final or (cell.waiting and job.cancelled is not None) else None
    return None


def _first_unsuccessful_stage(store: Outbox, job: JobRecord, row: int) -> str | None:
    """Return the first stage of a row that has not succeeded. A row with one stage is not read."""
    stages = job.plan.stages(row) if job.plan else ()
    if len(stages) == 1:
        return stages[0]
    return next((tag for tag in stages if not (store.get_cell(job.ref, tag, row) or Cell()).succeeded), None)


def _cancel_other_rows(store: Outbox, job: JobRecord, chosen: IndexSet) -> None:
    """Write CANCELLED to the rows of a cancelled job that never began and were not chosen."""
    reason = job.cancelled.reason if job.cancelled else None
    # Otherwise rows that were never claimed would be published once the job is no longer cancelled.
    store.claim(job.ref, ClaimRequest(publisher=f"rerun/{new_event_id()}", limit=0, drop_unclaimed=True))
    _, columns = store.column_summaries(job.ref, indexes=True)
    for row in IndexSet().union(*(each.missing or IndexSet() for each in columns)).without(chosen):
        tag = _failed_stage(store, job, row)
        if tag is not None:
            with suppress(AttemptSuperseded):  # another process has ended the row
                store.write(job.ref, Write.never_begun(tag, row, int(Status.CANCELLED), reason or ""))
