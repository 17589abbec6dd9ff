"""Apply one write or begin to one cell: fences, attempts, payloads. Pure. Every store does this in its atomic step."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from typing import Any

from celery_statemanager.errors import AttemptSuperseded, JobCancelled
from celery_statemanager.models import FINISHED, Status, fraction_of
from celery_statemanager.records import (
    FRACTION_UNIT,
    Begin,
    Cancellation,
    Cell,
    Delivery,
    JobRecord,
    Stall,
    Tally,
    Verdict,
    When,
    Write,
)


def apply_begin(
    job: JobRecord,
    cell: Cell,
    begin: Begin,
    now: int,
    *,
    though_cancelled: bool = False,
    forgotten: int | None = None,
) -> tuple[Verdict, Cell]:
    """Return the verdict on a Begin and the resulting cell, which is the same object if nothing must be written.

    Args:
        though_cancelled: begin in a cancelled job too, because the attempt has already ended.
        forgotten: the number of an attempt that continues although the store has lost its begin. It keeps its number.
    """
    goes_on = forgotten is not None and forgotten > cell.attempt
    verdict = _verdict(job, cell, begin, though_cancelled, goes_on)
    if verdict is Verdict.PAUSED:
        return verdict, _waiting_again(cell, begin, now)
    if verdict is Verdict.CANCELLED and job.cancelled and cell.status > 0 and not cell.final and not cell.open:
        return verdict, _ended(cell, Status.CANCELLED, job.cancelled.reason, begin.event_id, now)
    if verdict is not Verdict.BEGUN:
        return verdict, cell
    lost = cell.open and cell.owner is not None and begin.supersedes == cell.attempt and begin.counts_as_loss
    return verdict, Cell(  # by position, as in ``apply_write``
        int(Status.STARTED),
        begin.message,
        cell.payload,
        now,
        cell.version + 1,
        begin.event_id,
        max(cell.attempt + 1, forgotten or 0),
        True,  # open
        begin.delivery,
        begin.owner,
        cell.losses + lost,
        cell.kept if begin.kept is None else begin.kept,
        None,  # blocked_by
        now,
        cell.schema_version,
        cell.generation,
        cell.failures,
        Stall(begin.stall_after) if begin.stall_after else _NO_STALL,
    )


def _verdict(job: JobRecord, cell: Cell, begin: Begin, though_cancelled: bool, goes_on: bool) -> Verdict:
    if cell.succeeded:
        return Verdict.FINISHED
    if begin.task_index >= 0:
        if job.settled and not (goes_on or _reopens(job, cell, begin)):
            return Verdict.CLOSED
        if job.cancelled and not though_cancelled:
            return Verdict.CANCELLED
    if begin.takes_over or goes_on or (cell.open and begin.supersedes == cell.attempt):
        return Verdict.BEGUN
    return _verdict_on_delivery(job, cell, begin)


def _verdict_on_delivery(job: JobRecord, cell: Cell, begin: Begin) -> Verdict:
    if begin.delivery < cell.delivery:
        return Verdict.STALE
    if begin.delivery == cell.delivery:
        if cell.open:
            return Verdict.DUPLICATE
        if cell.final and cell.has_run and begin.owner is not None:
            return Verdict.CLOSED
    if begin.may_wait and begin.task_index >= 0 and cell.waiting and job.flow is not None and job.flow.paused:
        return Verdict.PAUSED
    return Verdict.BEGUN


def _waiting_again(cell: Cell, begin: Begin, now: int) -> Cell:
    """Return a cell that has not begun and whose message is due once more."""
    return replace(
        cell,
        timestamp=now,
        version=cell.version + 1,
        event_id=begin.event_id,
        delivery=_next_publication(begin.delivery),
    )


def _next_publication(delivery: Delivery) -> Delivery:
    return delivery._replace(publication=delivery.publication + 1)


def _reopens(job: JobRecord, cell: Cell, begin: Begin) -> bool:
    """Return whether a settled job accepts a delivery: its cell, or one before it, was marked LOST before it began."""
    if job.cancelled or job.plan is None or not job.plan.expects(begin.tag, begin.task_index):
        return False
    never_began = cell.status == Status.LOST and not cell.has_run and cell.blocked_by is None
    return never_began or not cell.final


def apply_write(job: JobRecord, cell: Cell, write: Write, now: int) -> Cell:
    """Return the cell after a write, or the same object if the write is a repetition.

    Raises: AttemptSuperseded, JobCancelled.
    """
    if cell.version and write.event_id == cell.event_id:
        return cell
    _fence(job, cell, write)
    if job.cancelled is not None:
        _refuse_if_cancelled(job, job.cancelled, cell, write)
    if write.stalled_since is not None:
        return _stalled(cell, write, write.stalled_since, now)
    status, message = _status_and_message(job, cell, write)
    still_open = cell.open and not write.ends_attempt
    ends = not still_open and (status < 0 or status == FINISHED)
    ends_late = ends and cell.awaits_end and write.ends_attempt
    closed_for_worker = write.presumed_dead and not still_open and status == write.status
    stays = cell.awaits_delivery and not (write.ends_attempt or write.due_again)
    awaits_delivery = not ends and (write.awaits_delivery or stays)
    return Cell(  # by position, because every write does this: keywords take three times as long, ``replace`` more
        status,
        message,
        _kept_payload(cell, write, status) if write.keep_payload else write.payload,
        now,
        cell.version + 1,
        write.event_id,
        cell.attempt,
        still_open,
        _delivery_after(cell, write, ends),
        cell.owner if still_open or closed_for_worker or awaits_delivery else None,
        cell.losses + write.counts_as_loss,
        None if ends else write.kept or cell.kept,
        None,  # blocked_by
        0 if closed_for_worker or write.due_again else cell.began_at or (now if awaits_delivery or ends_late else 0),
        cell.schema_version,
        cell.generation,
        cell.failures + (ends and status < 0 and status != Status.CANCELLED and not cell.has_failed),
        Stall(cell.stall.after) if still_open and cell.stall.after else _NO_STALL,
    )


def _stalled(cell: Cell, write: Write, since: int, now: int) -> Cell:
    """Return the cell marked as stalled, or the same object if the mark adds nothing."""
    if cell.stall.since and (cell.stall.stands_in or not write.stands_in):
        return cell
    stall = Stall(cell.stall.after, cell.stall.since or since, write.stands_in)
    return replace(cell, timestamp=now, version=cell.version + 1, event_id=write.event_id, stall=stall)


def _delivery_after(cell: Cell, write: Write, ends: bool) -> Delivery:
    if write.due_again and not ends:
        return _next_publication(cell.delivery)
    return cell.delivery if write.next_delivery is None else max(cell.delivery, write.next_delivery)


def _fence(job: JobRecord, cell: Cell, write: Write) -> None:
    refused = (
        (write.attempt is not None and write.attempt != cell.attempt)
        or (write.if_owner is not None and write.if_owner != (cell.owner, cell.delivery))
        or (write.when is When.OPEN and not cell.open and not _ends_late(cell, write))
        or (write.when is When.IDLE and (cell.open or cell.final))
        or (write.delivery is not None and write.delivery < cell.delivery)
        or (_cancels(write) and job.cancelled is None)
        or (write.stalled_since is not None and not _may_be_marked(cell, write))
    )
    if refused:
        raise AttemptSuperseded(job.job_id, write.tag, write.task_index, write.attempt, cell.attempt)


def _may_be_marked(cell: Cell, write: Write) -> bool:
    """Return whether the attempt is that of a worker and has not moved, or is marked as stalled."""
    return cell.owner is not None and (cell.version == write.if_version or cell.stall.since != 0)


def _cancels(write: Write) -> bool:
    """Return whether a write marks a row of a cancelled job that never began."""
    return write.when is When.IDLE and write.status == Status.CANCELLED


def _ends_late(cell: Cell, write: Write) -> bool:
    """Return whether a write is the end of an attempt by its own task, after another process closed the attempt.

    FINISHED is replaced only by itself: the attempt's last message and progress may follow.
    """
    replaces = write.status == FINISHED or not (write.presumed_dead or cell.status == FINISHED)
    return write.ends_attempt and cell.awaits_end and replaces


def _refuse_if_cancelled(job: JobRecord, cancelled: Cancellation, cell: Cell, write: Write) -> None:
    """Refuse a write to a cancelled job, unless it ends a cell that has begun or belongs to a callback."""
    if write.task_index < 0 or write.ends_attempt or write.stalled_since is not None:
        return
    ends_it = write.status < 0 or write.status == FINISHED or write.due_again
    if not ((ends_it and not cell.waiting) or _cancels(write)):
        raise JobCancelled(job.job_id, cancelled.reason)


def _status_and_message(job: JobRecord, cell: Cell, write: Write) -> tuple[int, str | None]:
    if job.cancelled is not None and write.task_index >= 0 and (write.when is When.IDLE or write.due_again):
        return int(Status.CANCELLED), job.cancelled.reason
    if write.due_again and cell.waiting:
        return cell.status, write.message
    if write.keep_app_status and cell.open and cell.status < 0:
        return cell.status, cell.message
    if write.keep_app_status and write.message is None:
        return write.status, None if cell.awaits_end and cell.status != FINISHED else cell.message
    return write.status, write.message


def _kept_payload(cell: Cell, write: Write, status: int) -> str | None:
    text = cell.payload
    if write.new_progress is not None:
        payload: dict[str, Any] = json.loads(text) if text else {}
        payload["progress"] = json.loads(write.new_progress)
        text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
    return _completed(text) if status == FINISHED else text


def _completed(text: str | None) -> str | None:
    """Return a payload with its progress set to the total."""
    if text is None or '"progress"' not in text:
        return text
    payload = json.loads(text)
    progress = payload.get("progress")
    if isinstance(progress, dict) and "total" in progress and "done" in progress:
        payload["progress"] = {**progress, "done": progress["total"]}
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":"))


def _ended(cell: Cell, status: int, message: str | None, event_id: str, now: int) -> Cell:
    return replace(
        cell,
        status=int(status),
        message=message,
        timestamp=now,
        version=cell.version + 1,
        event_id=event_id,
        owner=None,
        kept=None,
    )


def blocked(cell: Cell, failed: Cell, stage: str, event_id: str, now: int) -> Cell:
    """Return a later stage's cell with the status of the stage that failed. The cell has never begun."""
    message = f"not run: stage {stage!r} failed: {failed.message or failed.status}"
    return replace(_ended(cell, failed.status, message, event_id, now), blocked_by=stage)


def reset(cell: Cell, generation: int, event_id: str, now: int) -> Cell:
    """Return a cell reset for a generation: not started, with the next publication number."""
    return replace(
        _ended(cell, Status.NOT_STARTED, None, event_id, now),
        delivery=Delivery(cell.delivery.publication + 1),
        losses=0,
        blocked_by=None,
        began_at=0,
        generation=generation,
    )


def unblocked(cell: Cell, event_id: str, now: int) -> Cell:
    """Return a blocked cell as not started, because the failed stage has begun again."""
    return replace(_ended(cell, Status.NOT_STARTED, None, event_id, now), blocked_by=None)


def tally_of(cell: Cell | None, *, is_last: bool = False) -> Tally:
    """Return what a cell adds to its column's tally; None stands for a cell that was never written.

    Args:
        is_last: whether it is the last stage of its row in the plan.
    """
    if cell is None:
        return _NOTHING
    tally = _tally_of(cell)
    if cell.stall.since:
        tally = tally._replace(stalled=1)
    if is_last and tally.ended:
        tally = _ENDING_ROW[tally]
    return tally._replace(failures=cell.failures) if cell.failures else tally


def _tally_of(cell: Cell) -> Tally:
    status, is_open = cell.status, cell.open
    if status == 0:
        return _OPEN_ZERO if is_open else _NOTHING
    if status == FINISHED:
        return _OPEN_FINISHED if is_open else _FINISHED
    if status < 0:
        if is_open:
            return _OPEN_FAILED
        if cell.blocked_by is not None:
            return _NOT_RUN
        return _CANCELLED if status == Status.CANCELLED else _FAILED
    payload = cell.payload
    return _running(status) if payload is None or '"progress"' not in payload else _progressing(status, payload)


_NO_STALL = Stall()
_NOTHING = Tally()
_OPEN_ZERO = Tally(pending=1)
_OPEN_FINISHED = Tally(finished=1, pending=1)
_FINISHED = Tally(finished=1, succeeded=1, ended=1)
_OPEN_FAILED = Tally(failed=1, pending=1)
_FAILED = Tally(failed=1, ended=1, failed_rows=1)
_CANCELLED = Tally(failed=1, ended=1)
_NOT_RUN = Tally(not_run=1, ended=1)
_ENDING_ROW = {each: each._replace(rows=1) for each in (_FINISHED, _FAILED, _CANCELLED, _NOT_RUN)}


@lru_cache
def _running(status: int) -> Tally:
    return Tally(running=1, pending=1, progress=round((fraction_of(status, None) or 0.0) * FRACTION_UNIT))


def _progressing(status: int, payload: str) -> Tally:
    progress = json.loads(payload).get("progress")
    return Tally(running=1, pending=1, progress=round((fraction_of(status, progress) or 0.0) * FRACTION_UNIT))
