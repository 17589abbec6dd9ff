"""The second implementation of the rules of one cell, for ``ExpectedJob``."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from celery_statemanager.models import Status
from celery_statemanager.records import Begin, Cell, Delivery, Stall, Write
from celery_statemanager.testing.kit import CANCELLED, FINISHED


def waiting_again(cell: Cell, request: Begin) -> Cell:
    """Return a cell whose begin was refused because its job is paused, apart from its version."""
    publication, *others = request.delivery
    return replace(cell, delivery=Delivery(publication + 1, *others))


def taken(cell: Cell, request: Begin) -> Cell:
    """Return a cell after a begin, apart from its version."""
    superseded = cell.open and cell.owner is not None and request.supersedes == cell.attempt
    return replace(
        cell,
        status=int(Status.STARTED),
        message=request.message,
        attempt=cell.attempt + 1,
        open=True,
        delivery=request.delivery,
        owner=request.owner,
        losses=cell.losses + int(superseded and request.counts_as_loss),
        kept=request.kept or cell.kept,
        blocked_by=None,
        began_at=1,
        stall=Stall(request.stall_after),
    )


def written(cell: Cell, request: Write) -> Cell:
    """Return a cell after a write, apart from its version."""
    status, message = request.status, request.message
    if request.keep_app_status and cell.open and cell.status < 0:
        status, message = cell.status, cell.message
    elif request.keep_app_status and message is None:
        lost = cell.awaits_end and cell.status != FINISHED
        message = None if lost else cell.message
    if request.due_again and cell.status == 0 and not cell.open:
        status = 0
    is_open = cell.open and not request.ends_attempt
    over = not is_open and (status < 0 or status == FINISHED)
    closed_for_worker = request.presumed_dead and not is_open and status == request.status
    ends_late = over and cell.awaits_end and request.ends_attempt
    ends_waiting = request.ends_attempt or request.due_again
    awaits = not over and (request.awaits_delivery or (cell.awaits_delivery and not ends_waiting))
    deliveries = [cell.delivery, request.next_delivery or cell.delivery]
    if request.due_again and not over:
        publication, *others = cell.delivery
        deliveries = [Delivery(publication + 1, *others)]
    return replace(
        cell,
        status=status,
        message=message,
        payload=_merged(cell.payload, request.new_progress, status) if request.keep_payload else request.payload,
        open=is_open,
        delivery=max(deliveries),
        owner=cell.owner if is_open or closed_for_worker or awaits else None,
        losses=cell.losses + int(request.counts_as_loss),
        kept=None if over else request.kept or cell.kept,
        blocked_by=None,
        began_at=0 if closed_for_worker or request.due_again else cell.began_at or int(awaits or ends_late),
        stall=Stall(cell.stall.after) if is_open else Stall(),
        failures=cell.failures + int(over and _is_failure(status) and not _has_failed(cell)),
    )


def marked(cell: Cell, request: Write) -> Cell | None:
    """Return a cell that is marked as stalled, apart from its version; None if the mark adds nothing."""
    adds_place = cell.stall.stands_in is None and request.stands_in is not None
    if cell.stall.since and not adds_place:
        return None
    since = cell.stall.since or request.stalled_since or 0
    return replace(cell, stall=Stall(cell.stall.after, since, request.stands_in))


def message_of(cell: Cell) -> str | None:
    """Return the message of a cell as readers see it."""
    place = cell.stall.stands_in
    return cell.message if place is None else "; ".join(filter(None, [cell.message, f"stands in {place}"]))


def reset(cell: Cell, generation: int) -> Cell:
    """Return a cell that runs again, apart from its version."""
    return Cell(
        payload=cell.payload,
        version=cell.version,
        attempt=cell.attempt,
        delivery=Delivery(cell.delivery.publication + 1),
        schema_version=cell.schema_version,
        generation=generation,
        failures=cell.failures,
    )


def _is_failure(status: int) -> bool:
    return status < 0 and status != CANCELLED


def _has_failed(cell: Cell) -> bool:
    return _is_failure(cell.status) and not cell.open and not cell.blocked_by


def _merged(kept: str | None, progress: str | None, status: int) -> str | None:
    payload: dict[str, Any] | None = json.loads(kept) if kept else None
    if progress:
        payload = {**(payload or {}), "progress": json.loads(progress)}
    done = (payload or {}).get("progress")
    if status == FINISHED and isinstance(done, dict) and done.keys() >= {"done", "total"}:
        payload = {**(payload or {}), "progress": {**done, "done": done["total"]}}
    return None if payload is None else json.dumps(payload)


def comparable(cell: Cell) -> Cell:
    """Return a cell without its times and with its payload decoded."""
    payload: Any = json.loads(cell.payload) if cell.payload else None
    return replace(cell, timestamp=0, began_at=0, payload=payload)
