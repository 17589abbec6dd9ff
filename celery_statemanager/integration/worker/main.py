"""A worker's main process: it names itself, keeps its lease, and writes what only it can know."""

from __future__ import annotations

import atexit
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery import Celery
from celery.concurrency import get_implementation

from celery_statemanager import leases
from celery_statemanager.errors import AttemptSuperseded
from celery_statemanager.integration import redelivery, requests
from celery_statemanager.integration.backlog import backlog, remove_pending_folder
from celery_statemanager.integration.binding import Binding, binding_of, delivery_of
from celery_statemanager.integration.callbacks import publish_decided
from celery_statemanager.integration.installed import Tracker, tracker_of
from celery_statemanager.integration.worker.lease import Lease
from celery_statemanager.integration.worker.periodic import Periodic
from celery_statemanager.integration.worker.sweeping import keep_sweeping
from celery_statemanager.limits import sanitize
from celery_statemanager.records import Delivery, Write, WriteReply

LAST_CHANCE = 10.0
"""Seconds that a process which ends waits for a store that is down."""

_kept_going: list[Periodic] = []


def on_init(sender: Any = None, **_: Any) -> None:
    """Name this worker, and warn its store, before its children are made."""
    requests.name_worker()
    tracker = tracker_of(sender.app)
    if tracker is None:
        return
    redelivery.tell(sender.app)
    if _forks(sender):
        tracker.store.expect_forks()


def _forks(worker: Any) -> bool:
    """Whether a worker's pool makes children, and new ones as they are recycled or killed."""
    from celery.concurrency.prefork import TaskPool  # where it is needed: a submitter pays for nothing of a pool's

    pool = get_implementation(worker.pool_cls)
    return isinstance(pool, type) and issubclass(pool, TaskPool)


def on_ready(sender: Any = None, **_: Any) -> None:
    """Start keeping the lease, and sweeping."""
    tracker = tracker_of(sender.app)
    if tracker is not None:
        worker_id = requests.worker_id()
        _kept_going.extend((Lease(tracker, worker_id).keep(), keep_sweeping(tracker, worker_id)))
        atexit.register(on_shutdown)  # of a cold shutdown Celery tells nobody


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
    remove_pending_folder()


def on_child_shutdown(**_: Any) -> None:
    """Write what a child still holds before it goes, recycled or stopped."""
    backlog.flush(LAST_CHANCE)


def report(app: Celery, task_id: str, carrier: Any, status: int, message: str, *, began: bool) -> None:
    """Write an outcome that only the main process sees, in the background.

    Args:
        carrier: what holds the message's headers; None to go by the id alone.
        began: whether the body had begun, as far as Celery tells.
    """
    told = _Told.of(app, task_id, carrier)
    if told is not None:
        ending = Write.ending(*told.cell, status, sanitize(message), if_owner=told.holder)
        never_begun = Write.never_begun(*told.cell, status, sanitize(message))
        told.later(lambda: (told.close(ending) if began else None) or told.put(never_begun))


def report_pause(app: Celery, task_id: str, carrier: Any, message: str, *, more_retries: int) -> None:
    """Write, in the background, that an attempt is over and another delivery is to come.

    Args:
        carrier: as for ``report``.
        more_retries: by how many retries that delivery is ahead of this one.
    """
    told = _Told.of(app, task_id, carrier)
    if told is not None:
        coming = Delivery(told.delivery.replacements, told.delivery.retries + more_retries)
        pause = Write.returned(*told.cell, sanitize(message), coming, if_owner=told.holder)
        told.later(lambda: told.close(pause))


@dataclass(frozen=True)
class _Told:
    """A message of whose end the main process was told.

    Attributes:
        request: the worker's request object, if it still has one.
    """

    tracker: Tracker
    binding: Binding
    delivery: Delivery
    request: Any

    @classmethod
    def of(cls, app: Celery, task_id: str, carrier: Any) -> _Told | None:
        tracker, request = tracker_of(app), requests.find(task_id)
        held = None if request is None else request.request_dict
        source = carrier if carrier is not None and binding_of(carrier) else held
        binding = binding_of(source) if source else None
        if tracker is None or binding is None:
            return None
        return cls(tracker, binding, delivery_of(source), request)

    @property
    def cell(self) -> tuple[str, int]:
        return self.binding.tag, self.binding.task_index

    @property
    def holder(self) -> tuple[str, Delivery]:
        """Who has the open attempt: this worker, by this delivery."""
        return requests.worker_id(), self.delivery

    def later(self, action: Callable[[], object]) -> None:
        name = leases.cell_name(self.binding.ref, self.binding.tag, self.binding.task_index)
        backlog.put((name, "outcome"), action, self.binding.log_extra)

    def close(self, request: Write) -> WriteReply | None:
        """Write over this worker's open attempt; None if there is none, or it may be that of a later delivery."""
        if requests.find(self.binding.celery_task_id) not in {None, self.request}:
            return None
        try:
            return self.put(request)
        except AttemptSuperseded:
            return None

    def put(self, request: Write) -> WriteReply:
        """Write, and publish what that decided. Raises: AttemptSuperseded."""
        reply = self.tracker.store.write(self.binding.ref, request)
        publish_decided(self.tracker, self.binding.ref, reply.decided)
        return reply
