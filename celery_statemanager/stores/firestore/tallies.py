"""Tallies of columns, kept in shards: they alter in the commit of the cell, and one query sums them at any size.

A row always counts in the same shard. A job of up to ``SHARDS`` rows has a shard a row, so that no two writers meet
in one document; a larger one spreads its rows evenly. A sum over all shards of a column is billed as one read.
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
"""Fewer than the 1,000 index entries that a sum may read for the price of one document."""


class Counts(NamedTuple):
    """What a shard keeps: ``Tally`` without progress, which changes with every write, and the cells ever written.

    The names are those of the stored fields: ``alarms`` is ``Tally.failed_final``.
    """

    running: int = 0
    finished: int = 0
    failed: int = 0
    not_run: int = 0
    succeeded: int = 0
    ended: int = 0
    alarms: int = 0
    pending: int = 0
    written: int = 0

    def plus(self, other: Counts) -> Counts:
        """Add field by field."""
        return Counts(*map(int.__add__, self, other))

    def minus(self, other: Counts) -> Counts:
        """Subtract field by field."""
        return Counts(*map(int.__sub__, self, other))

    def tally(self, progress: int = 0) -> Tally:
        """Give the tally."""
        return Tally(*self[:8], progress)


DECISIVE = {"succeeded": "succeeded", "ended": "ended", "failed_final": "alarms", "pending": "pending"}
"""What the latches are decided by: the field of ``Tally`` and the stored one."""

check_tally(
    "Firestore", __name__, [*("failed_final" if name == "alarms" else name for name in Counts._fields), "progress"]
)


def is_expected(job: JobRecord, tag: str, task_index: int) -> bool:
    """Whether a cell counts in rows and the grid."""
    return task_index >= 0 and aggregate.expects(job, tag, task_index)


def shard_of(job: JobRecord, task_index: int) -> int:
    """Give the shard in which a row counts."""
    return task_index % min(job.num_tasks, SHARDS)


def counts_of(cell: Cell | None) -> Counts:
    """Give what a cell adds."""
    return Counts() if cell is None else Counts._make((*tally_of(cell)[:8], 1))


def changes(
    job: JobRecord, puts: Iterable[tuple[tuple[str, int], Cell | None, Cell]]
) -> Mapping[tuple[str, int], Counts]:
    """Give by tag and shard what cells that alter add to the tallies."""
    found: dict[tuple[str, int], Counts] = {}
    for (tag, row), old, new in puts:
        before, after = counts_of(old), counts_of(new)
        if before != after and is_counted(job, tag, row):
            place = tag, shard_of(job, row)
            found[place] = found.get(place, Counts()).plus(after.minus(before))
    return found


def fields_of(job: JobRecord, tag: str) -> dict[str, Any]:
    """Give the fields of a shard that are no counts."""
    return {"tag": tag, "expected": job.plan is None or tag in job.plan.columns}
