"""What each cell counts for, in the stores that keep it in a column of a table."""

from __future__ import annotations

from enum import IntEnum

from celery_statemanager.records import JobRecord


class Kind(IntEnum):
    """What a cell counts for. It follows from the job's plan and never changes."""

    CALLBACK = 0
    """A run of a callback: no reader of the grid sees it."""
    EXPECTED = 1
    """Counts in its column, row and grid: planned or, without a plan, any cell."""
    EXTRA = 2
    """Counts in its column only: the job's plan does not contain the tag."""
    STRAY = 3
    """Counts nowhere: the plan contains the tag, but not for this row."""


COUNTED = (Kind.EXPECTED, Kind.EXTRA)
"""The kinds whose cells make up a column."""


def kind_of(job: JobRecord, tag: str, task_index: int) -> Kind:
    """Return the kind of a cell."""
    if task_index < 0:
        return Kind.CALLBACK
    if job.plan is None:
        return Kind.EXPECTED
    rows = job.plan.columns.get(tag)
    if rows is None:
        return Kind.EXTRA
    return Kind.EXPECTED if task_index in rows else Kind.STRAY


def column_kind(job: JobRecord, tag: str) -> Kind:
    """Return the kind of the cells that make up a tag's column."""
    return Kind.EXPECTED if job.plan is None or tag in job.plan.columns else Kind.EXTRA
