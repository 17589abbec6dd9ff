"""Attempts that are alive but do not move: find and mark them (rule R23)."""

from __future__ import annotations

import logging

from celery_statemanager.durations import rough_duration
from celery_statemanager.leases import cell_name
from celery_statemanager.liveness import ListedCells
from celery_statemanager.records import Cell, JobRef, OpenAttempt, Write
from celery_statemanager.stores.base import Store

logger = logging.getLogger(__name__)


def stalled_since(attempt: OpenAttempt, worker: ListedCells | None, now: int) -> int | None:
    """Return since when an open attempt has not moved; None if it has no limit, or has moved within it.

    An attempt that has been marked before has no news. One whose worker has writes of its cell that wait for the
    store, or whose task waits in a barrier, moves.

    Args:
        worker: the record of its worker, if there is one.
    """
    cell = attempt.cell
    if not cell.stall.after or cell.stall.since:
        return None
    name = cell_name(attempt.ref, attempt.tag, attempt.task_index)
    moves_until = worker.moving.get(hash(name), 0) if worker else 0
    since = max(cell.timestamp, moves_until - cell.stall.after)
    return since if since + cell.stall.after <= now else None


def mark(store: Store, ref: JobRef, tag: str, row: int, cell: Cell, since: int, stands_in: str | None = None) -> None:
    """Mark an attempt as stalled, unless its cell has been written since it was read.

    Raises: AttemptSuperseded – it has been written; JobNotFound, StoreError.
    """
    write = Write.stalled(tag, row, attempt=cell.attempt, if_version=cell.version, since=since, stands_in=stands_in)
    reply = store.write(ref, write)
    if reply.changed:
        place = f"; it stands in {stands_in}" if stands_in else ""
        logger.warning(
            "job %r, task %d, %r has stalled: attempt %d has written nothing for %s%s",
            ref.key.job_id,
            row,
            tag,
            cell.attempt,
            rough_duration((reply.cell.timestamp - since) / 1_000_000),
            place,
            extra={"job_id": ref.key.job_id, "task_index": row, "tag": tag},
        )
