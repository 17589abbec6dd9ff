"""Rerun rows that have ended without success, as a new generation of their job (rule R20)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace

from celery_statemanager.deadline import Deadline
from celery_statemanager.errors import AttemptSuperseded, StoreContended, StoreError
from celery_statemanager.indexset import IndexSet, MutableIndexSet
from celery_statemanager.models import Status
from celery_statemanager.records import (
    Cell,
    ClaimRequest,
    Column,
    Delivery,
    JobRecord,
    JobRef,
    Reset,
    Write,
    new_event_id,
)
from celery_statemanager.retention import CHANGE_TIMEOUT, change_job
from celery_statemanager.stores.capabilities import Outbox

AT_ONCE = 500
"""Number of rows that are reset before they are published."""

FirstStage = Callable[[int, str], str]
"""Return the stage from which a row runs again, given the row and the stage that has not succeeded."""


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
    return _choose(store, *store.column_summaries(ref, indexes=requested is None), requested)[0]


def begin_generation(
    store: Outbox,
    ref: JobRef,
    requested: IndexSet | None,
    complete: Callable[[JobRecord], object],
    *,
    timeout: float = CHANGE_TIMEOUT,
) -> RerunReport:
    """Record a new generation with the rows that run again, unless there are none. ``reset_rows`` must follow.

    A cancelled job must have settled first. CANCELLED is then written to its other rows that never began, because the
    job itself is no longer cancelled afterwards.

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
        report, failed = _choose(store, job, columns, requested)
        if not report.rows:
            return report
        if job.cancelled is not None and not job.settled:
            stopping = f"job {ref.key.job_id!r} is cancelled and has not settled: wait until its tasks have stopped"
            deadline.pause(StoreError(stopping), StoreContended)
            continue
        if job.cancelled is not None:
            _cancel_other_rows(store, job, report.rows)
        failures = sum(column.tally.failures for column in columns)
        others = sum(column.tally.failed_rows for column in columns) - failed
        renewed = replace(job, policy=job.policy.renewed(store.now()))
        if store.update_job(renewed.with_generation(report.rows, failures, others)) is not None:
            return report
        error = StoreError(f"job {ref.key.job_id!r} was changed by other processes at each try; try again")
        deadline.pause(error, StoreContended)


def reset_rows(
    store: Outbox, job: JobRecord, first_stage: FirstStage, publish: Callable[[], object]
) -> tuple[str, ...]:
    """Reset the rows that a new generation has chosen, and return the latches that this decided.

    Any number of processes may do this at once, and repeat it after an interruption: each row is reset once.

    Args:
        publish: publishes the rows that are due; called from time to time, because a store may take longer to reset a
            row if many are due.

    Raises: JobNotFound; StoreContended; StoreError.
    """
    number = job.generation.number
    for count, row in enumerate(job.generation.rows_to_reset, start=1):
        tag = _stage_to_reset(store, job, row)
        if tag is not None:
            store.reset_row(job.ref, Reset(tag=first_stage(row, tag), task_index=row, generation=number))
        if count % AT_ONCE == 0:
            publish()

    def without_resets(now: JobRecord) -> JobRecord | None:
        if now.generation.number != number or not now.generation.rows_to_reset:
            return None
        return replace(now, generation=replace(now.generation, rows_to_reset=IndexSet()))

    return change_job(store, job.ref, without_resets) or ()


def _choose(
    store: Outbox, job: JobRecord, columns: list[Column], requested: IndexSet | None
) -> tuple[RerunReport, int]:
    """Return the rows of a rerun, and how many of those that run again have failed by themselves."""
    if requested is not None:
        rows, failed = _rerunnable(store, job, requested)
        return RerunReport(rows, requested.without(rows)), failed
    candidates = IndexSet().union(*(part or IndexSet() for each in columns for part in (each.failed, each.not_run)))
    if job.cancelled is not None:
        candidates = candidates.union(*(each.missing or IndexSet() for each in columns))
    rows, failed = candidates, sum(column.tally.failed_rows for column in columns)
    if any(column.tally.pending for column in columns):
        rows, failed = _rerunnable(store, job, candidates)
    return RerunReport(rows, candidates.without(rows)), failed


def _rerunnable(store: Outbox, job: JobRecord, rows: Iterable[int]) -> tuple[IndexSet, int]:
    """Return those of some rows that have ended without success, and the number of their cells that have failed."""
    found, failed = MutableIndexSet(), 0
    for row in rows:
        cells = _cells_of(store, job, row).values()
        if _has_failed(job, cells):
            found.add(row)
            failed += sum(cell.has_failed for cell in cells)
    return IndexSet.from_ranges(found.ranges()), failed


def _has_failed(job: JobRecord, cells: Collection[Cell]) -> bool:
    """Return whether a row has ended without success. In a cancelled job, this includes a stage that never began."""
    if not all(cell.final or cell.waiting for cell in cells):
        return False
    return any(not cell.succeeded and (cell.final or job.cancelled is not None) for cell in cells)


def _stage_to_reset(store: Outbox, job: JobRecord, row: int) -> str | None:
    """Return the stage at which a row has ended without success, or the first that waits.

    A row with one stage is not read.
    """
    stages = job.plan.stages(row) if job.plan else ()
    if len(stages) == 1:
        return stages[0]
    cells = _cells_of(store, job, row)
    failed = [tag for tag, cell in cells.items() if cell.final and not cell.succeeded]
    return next(iter((*failed, *(tag for tag, cell in cells.items() if not cell.succeeded))), None)


def _cells_of(store: Outbox, job: JobRecord, row: int) -> dict[str, Cell]:
    """Return the cells of a row by tag, in the order of its stages."""
    stages = job.plan.stages(row) if job.plan else ()
    return {tag: store.get_cell(job.ref, tag, row) or Cell() for tag in stages}


def _cancel_other_rows(store: Outbox, job: JobRecord, chosen: IndexSet) -> None:
    """Write CANCELLED to the rows of a cancelled job that never began, or not to their end, and were not chosen.

    Their messages may still be in a queue. The next publication number keeps them from beginning.
    """
    reason, publisher = job.cancelled.reason if job.cancelled else None, f"rerun/{new_event_id()}"
    # Otherwise rows that were never claimed would be published once the job is no longer cancelled.
    store.claim(job.ref, ClaimRequest(publisher=publisher, limit=0, drop_unclaimed=True))
    _, columns = store.column_summaries(job.ref, indexes=True)
    for row in IndexSet().union(*(each.missing or IndexSet() for each in columns)).without(chosen):
        for tag, cell in _cells_of(store, job, row).items():
            if cell.waiting:
                write = Write.never_begun(tag, row, int(Status.CANCELLED), reason or "")
                write.next_delivery = Delivery(cell.delivery.publication + 1)
                write.publisher = publisher  # the row leaves the outbox
                with suppress(AttemptSuperseded):  # another process has ended it, or the job is no longer cancelled
                    store.write(job.ref, write)
                break  # the later stages are blocked
