"""What ``columns.lua`` and ``cells.lua`` found, as states and columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery_statemanager.aggregate import lowest, mask_cancelled, missing_state
from celery_statemanager.models import State
from celery_statemanager.records import Column, JobRecord, Tally
from celery_statemanager.stores.redis.cells import TALLY, cell_of, state_of
from celery_statemanager.stores.redis.layout import Ranks
from celery_statemanager.stores.redis.packing import unpack
from celery_statemanager.stores.redis.rowsets import RowSets


def seen_state(job: JobRecord, tag: str, row: int, packed: bytes | None) -> State:
    """Give a cell as readers see it."""
    if packed is None:
        return missing_state(job, tag, row)
    state = state_of(job.job_id, tag, row, packed)
    return state if job.cancelled is None else mask_cancelled(job, cell_of(packed), state)


def column_of(job: JobRecord, tag: str, ranks: Ranks, found: Sequence[Any], sets: RowSets | None = None) -> Column:
    """Read one column of a reply.

    Args:
        sets: its rows by class, if they are known from elsewhere.
    """
    counts = dict(zip(TALLY, unpack(found[0]))) if found[0] else {}
    unwritten = counts.pop("unwritten", 0)
    cells = found[1]
    states = [
        seen_state(job, tag, int(row), packed) for row, packed in zip(cells[::2], cells[1::2]) if packed is not None
    ]
    if unwritten < len(ranks):
        states.append(missing_state(job, tag, ranks.row(unwritten)))
    column = Column(tag, len(ranks), Tally(**counts), lowest(states))
    sets = RowSets.from_reply(ranks, *found[2:7]) if len(found) > 2 else sets
    if sets is not None:
        column.failed, column.running, column.missing, column.not_run = sets
    return column
