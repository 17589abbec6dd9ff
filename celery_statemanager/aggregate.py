"""Aggregate the cells of a grid, including unwritten ones, by the lowest status (rules R5, R6, R15, R17, R22). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from celery_statemanager.codec import state_of
from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import State, Status, Summary
from celery_statemanager.records import FRACTION_UNIT, Cancellation, Cell, Column, JobRecord, Tally


def missing_state(job: JobRecord, tag: str, task_index: int) -> State:
    """Return the state of a cell that was never written: not started or, in a cancelled job, CANCELLED."""
    if job.cancelled is None:
        return State(job.job_id, task_index, tag)
    return State(job.job_id, task_index, tag, int(Status.CANCELLED), job.cancelled.reason)


def mask_cancelled(job: JobRecord, cell: Cell, state: State) -> State:
    """Return the state of a written cell as readers see it: CANCELLED if its job is cancelled and it has not begun."""
    if job.cancelled is None or not cell.waiting:
        return state
    return replace(state, status=int(Status.CANCELLED), message=job.cancelled.reason)


def visible_state(job: JobRecord, tag: str, task_index: int, cell: Cell | None) -> State:
    """Return the state of a cell as readers see it."""
    if cell is None:
        return missing_state(job, tag, task_index)
    return mask_cancelled(job, cell, state_of(job.job_id, tag, task_index, cell))


def lowest(states: Iterable[State]) -> State | None:
    """Return the lowest state. Ties go to the lowest row, then to the first tag in code-point order."""
    return min(states, key=lambda state: (state.status, state.task_index, state.tag), default=None)


def expected_tags(job: JobRecord, written: Iterable[str]) -> list[str]:
    """Return the tags that count in row and grid aggregates, in code-point order."""
    return sorted(job.plan.tags if job.plan else written)


def expected_rows(job: JobRecord, tag: str) -> IndexSet:
    """Return the rows expected under a tag: the planned rows, or all rows for an unplanned tag."""
    planned = job.plan.columns.get(tag) if job.plan else None
    return IndexSet(range(job.num_tasks)) if planned is None else planned


def expects(job: JobRecord, tag: str, task_index: int) -> bool:
    """Return whether a cell counts in row and grid aggregates, once its tag has been written."""
    return job.plan is None or job.plan.expects(tag, task_index)


def ends_row(job: JobRecord, tag: str, task_index: int) -> bool:
    """Return whether a cell is the last stage of its row. A job without a plan has no stages."""
    return job.plan is not None and task_index >= 0 and job.plan.ends_row(tag, task_index)


def failed_rows(job: JobRecord, tally: Tally) -> int:
    """Return the number of rows that have failed in the current generation.

    Args:
        tally: the sum over all expected columns.
    """
    return max(0, tally.failed_rows - job.generation.earlier_failed_rows)


def stopped(job: JobRecord, tally: Tally, now: int) -> JobRecord:
    """Return the job, cancelled if more rows have failed than its policy tolerates (rule R22).

    Args:
        tally: the sum over all expected columns.
        now: the time of the cancellation.
    """
    limit, failed = job.policy.max_failed, failed_rows(job, tally)
    if limit is None or failed <= limit or job.cancelled or job.settled or job.generation.rows_to_reset:
        return job
    rows = "1 row" if failed == 1 else f"{failed} rows"
    return replace(job, cancelled=Cancellation(f"{rows} failed, at most {limit} may (max_failed)", now))


def decisions(job: JobRecord, expected: int, tally: Tally) -> tuple[str, ...]:
    """Return the names of the undecided latches whose condition the tally meets (rules R15, R20, R22).

    Args:
        expected: the number of expected cells.
        tally: the sum over all expected columns.
    """
    if job.generation.rows_to_reset:
        return ()
    met = {
        "success": not job.cancelled and _succeeds(job, expected, tally),
        "failure": _fails(job, tally),
        "settled": tally.pending == 0 if job.cancelled else tally.ended >= expected,
    }
    return tuple(name for name, holds in met.items() if holds and job.latches[name].decided_at is None)


def _succeeds(job: JobRecord, expected: int, tally: Tally) -> bool:
    """Return whether all cells have finished, except those of as many failed rows as the policy tolerates."""
    if job.policy.max_failed is None:
        return tally.succeeded >= expected
    tolerated = tally.failed_rows + tally.not_run
    return tally.failed_rows <= job.policy.max_failed and tally.succeeded + tolerated >= expected


def _fails(job: JobRecord, tally: Tally) -> bool:
    if job.policy.max_failed is None:
        return tally.failures > job.generation.earlier_failures
    return failed_rows(job, tally) > job.policy.max_failed


def settled(job: JobRecord, columns: Sequence[Column]) -> bool:
    """Return whether every expected cell is final. Without a plan, a later write may change the result."""
    if job.plan:
        return job.settled
    if job.cancelled:
        return all(column.tally.pending == 0 for column in columns)
    return bool(columns) and all(column.tally.ended >= column.expected for column in columns)


def summarize(job: JobRecord, columns: Sequence[Column], *, indexes: bool) -> Summary:
    """Return the summary of columns. In a cancelled job, cells that are not started count as failed.

    Args:
        indexes: whether the columns contain their index sets.
    """
    expected = sum(column.expected for column in columns)
    total = Tally()
    for column in columns:
        total = total.plus(column.tally)
    not_started = expected - total.started
    gone = not_started if job.cancelled else 0
    least = lowest(column.lowest for column in columns if column.lowest is not None)
    done = total.finished * FRACTION_UNIT + total.progress
    return Summary(
        num_tasks=job.num_tasks,
        expected=expected,
        not_started=not_started - gone,
        running=total.running,
        finished=total.finished,
        failed=total.failed + gone,
        lowest=least or missing_state(job, "", 0),
        fraction=done / (expected * FRACTION_UNIT) if expected else 0.0,
        not_run=total.not_run,
        generation=job.generation.number,
        failed_rows=failed_rows(job, total) if _is_whole(job, columns) else total.failed_rows,
        max_failed=job.policy.max_failed,
        stalled=total.stalled,
        **(_index_sets(job, columns) if indexes else {}),
    )


def _is_whole(job: JobRecord, columns: Sequence[Column]) -> bool:
    return job.plan is None or len(columns) == len(job.plan.tags)


def _index_sets(job: JobRecord, columns: Sequence[Column]) -> dict[str, IndexSet]:
    failed, running, missing, not_run, stalled = (
        IndexSet().union(*(getattr(column, kind) for column in columns))
        for kind in ("failed", "running", "missing", "not_run", "stalled")
    )
    if job.cancelled:
        failed, missing = failed.union(missing), IndexSet()
    return {
        "failed_indexes": failed,
        "running_indexes": running,
        "missing_indexes": missing,
        "not_run_indexes": not_run,
        "stalled_indexes": stalled,
    }
