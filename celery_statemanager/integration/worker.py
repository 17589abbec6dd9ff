"""A worker's main process: it names itself, keeps its lease, and writes what only it can know."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from typing import Any

from celery import Celery

from celery_statemanager import leases
from celery_statemanager.errors import AttemptSuperseded
from celery_statemanager.integration import worker_requests
from celery_statemanager.integration.background import backlog
from celery_statemanager.integration.binding import Binding, binding_of, delivery_of
from celery_statemanager.integration.callbacks import publish_decided
from celery_statemanager.integration.installed import Tracker, tracker_of
from celery_statemanager.integration.keeper import Lease, Periodic, keep_sweeping
from celery_statemanager.limits import readable
from celery_statemanager.manager import new_event_id
from celery_statemanager.records import Delivery, When, Write, WriteReply

LAST_CHANCE = 10.0
"""Seconds that a process which ends waits for a store that is down."""

_kept_going: list[Periodic] = []


def on_init(**_: Any) -> None:
    """Name this worker before its children are made."""
    worker_requests.name_worker()


def on_ready(sender: Any = None, **_: Any) -> None:
    """Start keeping the lease, and sweeping."""
    tracker = tracker_of(sender.app)
    if tracker is not None:
        worker_id = worker_requests.worker_id()
        _kept_going.extend((Lease(tracker, worker_id).keep(), keep_sweeping(tracker, worker_id)))


def on_beat(sender: Any = None, **_: Any) -> None:
    """Sweep from beat, too: directly, not by a task that could wait on the queue whose workers died."""
    tracker = tracker_of(sender.app)
    if tracker is not None:
        _kept_going.append(keep_sweeping(tracker, f"beat:{socket.gethostname()}:{os.getpid()}"))


def on_shutdown(**_: Any) -> None:
    """Write what is left and give the lease back."""
    backlog.flush(LAST_CHANCE)
    while _kept_going:
        _kept_going.pop().stop()


def on_child_shutdown(**_: Any) -> None:
    """Write what a child still holds before it goes, recycled or stopped."""
    backlog.flush(LAST_CHANCE)


def report(app: Celery, task_id: str, carrier: Any, status: int, message: str, *, began: bool) -> None:
    """Write an outcome that only the main process sees, in the background.

    Args:
        carrier: what holds the message's headers; None to go by the id alone.
        began: whether the body had begun, as far as Celery tells.
    """
    tracker = tracker_of(app)
    source = carrier if carrier is not None and binding_of(carrier) else worker_requests.find(task_id)
    binding = binding_of(source) if source else None
    if tracker is not None and binding is not None:
        delivery = delivery_of(source)
        key = (leases.cell_name(binding.ref, binding.tag, binding.task_index), "outcome")
        text, event_id = readable(message), new_event_id()
        backlog.put(
            key, lambda: _write(tracker, binding, delivery, status, text, event_id, began=began), binding.log_extra
        )


def _write(
    tracker: Tracker, binding: Binding, delivery: Delivery, status: int, message: str, event_id: str, *, began: bool
) -> None:
    """Write the outcome over this worker's open attempt, else over a cell that nobody has open."""
    request = Write(
        tag=binding.tag,
        task_index=binding.task_index,
        status=status,
        message=message,
        event_id=event_id,
        keeps_payload=True,
        cascades=True,
        when=When.IDLE,
    )
    reply = (_close(tracker, binding, delivery, request) if began else None) or tracker.store.write(
        binding.ref, request
    )
    publish_decided(tracker, binding.ref, reply.decided)


def _close(tracker: Tracker, binding: Binding, delivery: Delivery, request: Write) -> WriteReply | None:
    holder = (worker_requests.worker_id(), delivery)
    closing = replace(request, when=When.OPEN, held_by=holder, closes=True, yields=True)
    try:
        return tracker.store.write(binding.ref, closing)
    except AttemptSuperseded:
        return None
