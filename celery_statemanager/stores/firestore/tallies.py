"""Tallies of columns in shards. A shard changes in the commit of a cell, and one query sums a column at any size.

A row always counts in the same shard. A job of up to ``SHARDS`` rows has one shard per row, so that no two writers
share a document. A larger job distributes its rows evenly. Firestore bills the sum of a column as one read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from celery_statemanager import aggregate
from celery_statemanager.records import Cell, JobRecord, Tally
from celery_statemanager.stores.fields import check_tally
from celery_statemanager.stores.recount import is_counted
from celery_statemanager.transitions import tally_of

SHARDS = 500
"""Below the 1,000 index entries that a sum may read for the price of one document."""

DECISIVE = ("succeeded", "ended", "alarms", "pending")
"""The stored fields that decide the latches of a job."""

TOLERANT = ("failed_rows", "ended", "pending")
"""The stored fields that decide the latches of a job with ``Policy.max_failed``, until all its cells have ended."""

TOLERANT_AT_END = ("succeeded", "not_run")
"""The stored fields that decide whether such a job has succeeded. A query sums at most five fields."""


def decisive(job: JobRecord) -> tuple[str, ...]:
    """Return the stored fields that decide the latches and claims of a job that has cells left to end."""
    fields = DECISIVE if job.policy.max_failed is None else TOLERANT
    return (*fields, "rows") if job.has_window else fields


class ShardCounts(NamedTuple):
    """The counts of a shard: ``Tally`` except ``progress``, which changes with every write, and the written cells.

    The names are those of the stored fields; ``alarms`` is ``Tally.failures``. Shards of earlier releases lack
    ``not_run``, ``rows``, ``failed_rows`` or ``stalled``, and count failures that their cells do not. Nothing compares
    the two.
    """

    running: int = 0
    finished: int = 0
    failed: int = 0
    not_run: int = 0
    succeeded: int = 0
    ended: int = 0
    alarms: int = 0
    pending: int = 0
    rows: int = 0
    failed_rows: int = 0
    stalled: int = 0
    written: int = 0

    def plus(self, other: ShardCounts) -> ShardCounts:
        """Add field by field."""
        return ShardCounts(*map(int.__add__, self, other))

    def minus(self, other: ShardCounts) -> ShardCounts:
        """Subtract field by field."""
        return ShardCounts(*map(int.__sub__, self, other))

    def tally(self, progress: int = 0) -> Tally:
        """Convert the counts to a tally."""
        return Tally(*self[:-1], progress)


check_tally(
    "Firestore", __name__, [*("failures" if name == "alarms" else name for name in ShardCounts._fields), "progress"]
)


def is_expected(job: JobRecord, tag: str, task_index: int) -> bool:
    """Return whether a cell counts in its row and in the grid."""
    return task_index >= 0 and aggregate.expects(job, tag, task_index)


def shard_of(job: JobRecord, task_index: int) -> int:
    """Return the shard that counts a row."""
    return task_index % min(job.num_tasks, SHARDS)


def counts_of(cell: Cell | None, *, is_last: bool) -> ShardCounts:
    """Return the counts of a single cell.

    Args:
        is_last: whether it is the last stage of its row in the plan.
    """
    return ShardCounts() if cell is None else ShardCounts._make((*tally_of(cell, is_last=is_last)[:-1], 1))


def changes(
    job: JobRecord, puts: Iterable[tuple[tuple[str, int], Cell | None, Cell]]
) -> Mapping[tuple[str, int], ShardCounts]:
    """Return the change of each tally shard, by tag and shard.

    Args:
        puts: for each changed cell its key, its content before and its new content.
    """
    by_shard: dict[tuple[str, int], ShardCounts] = {}
    for (tag, row), old, new in puts:
        is_last = aggregate.ends_row(job, tag, row)
        before, after = counts_of(old, is_last=is_last), counts_of(new, is_last=is_last)
        if before != after and is_counted(job, tag, row):
            shard = tag, shard_of(job, row)
            by_shard[shard] = by_shard.get(shard, ShardCounts()).plus(after.minus(before))
    return by_shard


def fields_of(job: JobRecord, tag: str) -> dict[str, Any]:
    """Return the fields of a shard other than the counts."""
    return {"tag": tag, "expected": job.plan is None or tag in job.plan.columns}
