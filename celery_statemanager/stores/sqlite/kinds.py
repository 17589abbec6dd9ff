"""What kinds of cells a job has: a tag row is kept for each, so that a column's index holds its own rows only."""

from __future__ import annotations

from enum import IntEnum

from celery_statemanager.records import JobRecord


class Kind(IntEnum):
    """What a cell counts for; it follows from the job's plan and never changes."""

    CALLBACK = 0
    """A run of a callback: no reader of the grid sees it."""
    EXPECTED = 1
    """In its column, row and grid: planned or, without a plan, any."""
    EXTRA = 2
    """In its column alone: the job's plan does not know the tag."""
    STRAY = 3
    """In nothing: the plan knows the tag, but not for this row."""


COUNTED = (Kind.EXPECTED, Kind.EXTRA)
"""The kinds whose cells make up a column."""


def kind_of(job: JobRecord, tag: str, task_index: int) -> Kind:
    """Give the kind of a cell."""
    if task_index < 0:
        return Kind.CALLBACK
    if job.plan is None:
        return Kind.EXPECTED
    rows = job.plan.columns.get(tag)
    if rows is None:
        return Kind.EXTRA
    return Kind.EXPECTED if task_index in rows else Kind.STRAY


def column_kind(job: JobRecord, tag: str) -> Kind:
    """Give the kind of the cells that make up a tag's column."""
    return Kind.EXPECTED if job.plan is None or tag in job.plan.columns else Kind.EXTRA
