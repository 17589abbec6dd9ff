"""Begin attempts, write as one, and end those of dead workers (rules R14, R16)."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import NamedTuple

from celery_statemanager import completion, leases
from celery_statemanager.errors import AttemptSuperseded, JobCancelled
from celery_statemanager.leases import RENEWALS, Report, cell_name
from celery_statemanager.models import Status
from celery_statemanager.records import Begin, BeginReply, Cell, JobRef, Verdict, WorkerRecord, Write, WriteReply
from celery_statemanager.stores.base import Store
from celery_statemanager.stores.capabilities import WorkerRegistry

logger = logging.getLogger(__name__)


class Alone(NamedTuple):
    """The receipt of a message by a worker that ran nothing for the cell. None of its earlier attempts still runs.

    Attributes:
        since: the monotonic time at which it was received.
        stopped: whether the worker itself had ended the last of them.
    """

    since: float
    stopped: bool = False


def begin(
    store: WorkerRegistry, ref: JobRef, request: Begin, *, max_lost: int, alone: Alone | None = None
) -> BeginReply:
    """Begin an attempt. A duplicate delivery supersedes the open attempt only if no live worker may still run it.

    Args:
        max_lost: the number of losses at which the cell becomes LOST instead of beginning again. An attempt that its
            worker has ended itself is not a loss.
        alone: the state of the worker's own attempts when it received the message.
    """
    reply = completion.begin(store, ref, request)
    if reply.verdict is Verdict.BEGUN and reply.cell.losses >= max_lost:
        return _refuse_lost(store, ref, request, reply, max_lost)
    if reply.verdict is not Verdict.DUPLICATE:
        return reply
    cell = reply.cell
    own = alone if cell.owner is not None and cell.owner == request.owner else None
    if own is not None and cell.began_at < store.now() - (time.monotonic() - own.since) * 1_000_000:
        stopped = own.stopped
    else:
        name = cell_name(ref, request.tag, request.task_index)
        record, now = None if cell.owner is None else store.get_worker(cell.owner), store.now()
        if _accounted_for(record, cell, name, now):
            return reply
        stopped = leases.was_stopped(record, name, cell.began_at, now)
    if not stopped and cell.owner is not None and cell.losses + 1 >= max_lost:
        place = request.tag, request.task_index
        decided = mark_lost(store, ref, *place, cell, request.event_id, max_lost=max_lost)
        return replace(reply, verdict=Verdict.CLOSED, decided=decided)
    return store.begin(ref, replace(request, supersedes=cell.attempt, counts_as_loss=not stopped))


def write(store: Store, ref: JobRef, request: Write, begin: Begin) -> WriteReply:
    """Write as an attempt. If the store has no record of its begin, repeat this begin in the same step.

    A store that was restored from a copy, or failed over to a replica, has an older attempt of the cell or none.
    Nothing has superseded an attempt with a higher number. Raises: as ``Store.write``.
    """
    try:
        return store.write(ref, request)
    except AttemptSuperseded as error:
        if not error.forgotten:
            raise
        logger.warning("the store has no record of a begin, repeating it: %s", error, extra={"job_id": ref.key.job_id})
    return store.write(ref, replace(request, begin=begin))


def _refuse_lost(store: WorkerRegistry, ref: JobRef, request: Begin, reply: BeginReply, max_lost: int) -> BeginReply:
    """End the attempt of a task that has killed its workers too often: brokers deliver such a message again."""
    message = f"lost with its worker {max_lost} times, not run again"
    ending = Write.ending(request.tag, request.task_index, int(Status.LOST), message, attempt=reply.cell.attempt)
    return replace(reply, verdict=Verdict.CLOSED, decided=reply.decided + store.write(ref, ending).decided)


def mark_lost(
    store: WorkerRegistry, ref: JobRef, tag: str, task_index: int, cell: Cell, event_id: str, *, max_lost: int | None
) -> tuple[str, ...]:
    """End an open attempt as LOST, because its worker is dead. Return the latches that this decided.

    Args:
        max_lost: None if the worker has stopped or has ended the attempt itself, which is not a loss.
    """
    losses = f" (loss {cell.losses + 1} of {max_lost})" if max_lost is not None and cell.losses else ""
    message = f"{'stopped' if max_lost is None else 'lost'} with its worker {cell.owner}{losses}"
    lost = Write.lost(tag, task_index, message, attempt=cell.attempt, event_id=event_id)
    lost.counts_as_loss = max_lost is not None
    try:
        return store.write(ref, lost).decided
    except (AttemptSuperseded, JobCancelled):
        return ()


def _accounted_for(record: WorkerRecord | None, cell: Cell, name: str, now: int) -> bool:
    """Return whether a live worker lists an attempt or may not have had the time to list it."""
    if record is None or record.lease_until <= now:
        return False
    report = Report.from_record(record)
    if report.has_ended(name, cell.began_at):
        return False
    renewal = (record.lease_until - record.renewed_at) // RENEWALS
    return cell.began_at >= record.renewed_at - renewal or report.lists(name)
