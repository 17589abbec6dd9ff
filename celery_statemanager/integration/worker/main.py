"""Signal handlers of a worker's main process: its lease, its sweeps, and the outcomes that only it learns of."""

from __future__ import annotations

import atexit
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from celery import Celery

from celery_statemanager import leases
from celery_statemanager.errors import AttemptSuperseded
from celery_statemanager.greenlets import has_green_threads
from celery_statemanager.integration import pools, redelivery, requests, results
from celery_statemanager.integration.backlog import flush_all
from celery_statemanager.integration.binding import Binding, binding_of, part_of
from celery_statemanager.integration.forks import renew_locks_in_children
from celery_statemanager.integration.installed import Tracker, tracker_of
from celery_statemanager.integration.outbox import publisher
from celery_statemanager.integration.pending_files import find_folder, remove_folder
from celery_statemanager.integration.task.replacement import OF_A_PART, part_ending
from celery_statemanager.integration.worker.lease import Lease
from celery_statemanager.integration.worker.main_loop import MainLoop
from celery_statemanager.integration.worker.sweeping import keep_sweeping
from celery_statemanager.limits import sanitize
from celery_statemanager.models import Status
from celery_statemanager.records import Delivery, Write, WriteReply

FLUSH_TIMEOUT = 10.0
"""Seconds for which an ending process waits for an unavailable store."""

_workers: list[WorkerThreads] = []
"""The threads of the workers of this process, until they end. There may be several in tests."""


def on_init(sender: Any = None, **_: Any) -> None:
    """Set the id of this worker, and prepare its store for forks, before its children are created."""
    requests.name_worker()
    tracker = tracker_of(sender.app)
    if tracker is None:
        return
    redelivery.log_invalid_options(sender.app, tracker.settings.progress_interval)
    find_folder()
    pools.use(sender)
    if pools.forks(sender.pool_cls):
        tracker.store.expect_forks()
        renew_locks_in_children()


class WorkerThreads:
    """The threads that renew the lease of this worker and sweep. A process that ends stops them."""

    def __init__(self, tracker: Tracker, main_loop: MainLoop, pool: Any) -> None:
        pools.warn_if_unknown()
        self._worker_id = requests.worker_id()
        store = tracker.open_own_store() if has_green_threads() else tracker.store
        processes = partial(pools.processes, pool)
        self._lease = Lease(tracker, self._worker_id, store=store, idle=main_loop.idle, processes=processes)
        self._renewing, self._sweeping = self._lease.keep(), keep_sweeping(tracker, self._worker_id)
        _workers.append(self)

    def announce_stop(self) -> None:
        """Record that the worker is shutting down. A signal handler may call this."""
        self._lease.announce_stop()
        self._renewing.hurry()

    def note_connection_end(self) -> None:
        """Record that the connection to the broker has ended."""
        self._lease.note_connection_end()
        self._renewing.hurry()

    def stop(self) -> None:
        """Write the waiting states, release the lease, and remove the traces of the worker from its process."""
        if self in _workers:
            _workers.remove(self)
            flush_all(FLUSH_TIMEOUT)
            self._sweeping.stop()
            publisher.release_claims()
            self._renewing.stop()
            remove_folder()
            requests.unname_worker(self._worker_id)
            pools.leave()


def on_stopping(**_: Any) -> None:
    """Record that the worker is shutting down."""
    for worker in _workers:
        worker.announce_stop()


@atexit.register
def _stop_workers() -> None:
    for worker in [*_workers]:
        worker.stop()


def on_beat(sender: Any = None, **_: Any) -> None:
    """Start to sweep in beat."""
    tracker = tracker_of(sender.app)
    if tracker is not None:
        keep_sweeping(tracker, f"beat:{socket.gethostname()}:{os.getpid()}")


def on_child_shutdown(**_: Any) -> None:
    """Write the waiting states of a child process and remove its claims, before it ends."""
    flush_all(FLUSH_TIMEOUT)
    publisher.release_claims()


def report(app: Celery, task_id: str, carrier: Any, status: int, message: str, *, began: bool) -> None:
    """Write an outcome that only the main process learns of, in the background.

    Args:
        carrier: the mapping with the message's headers; None to find the message by its id alone.
        began: whether the body had begun, as far as Celery reports it.
    """
    writer = _CellWriter.find(app, task_id, carrier)
    if writer is None:
        _report_part(app, task_id, carrier, status, message)
    else:
        ending = Write.ending(*writer.cell, status, sanitize(message), if_owner=writer.holder)
        ending.presumed_dead = status == Status.LOST  # its own end may still follow
        never_begun = Write.never_begun(*writer.cell, status, sanitize(message), delivery=writer.delivery)
        lost = began and status == Status.LOST
        writer.queue(
            lambda: (
                (lost and writer.has_succeeded())
                or (writer.close_attempt(ending) if began else None)
                or writer.write(never_begun)
            )
        )


def _report_part(app: Celery, task_id: str, carrier: Any, status: int, message: str) -> None:
    """End the cell of a replacement, a part of which ended without a result; do nothing for any other message."""
    tracker = tracker_of(app)
    if tracker is None:
        return
    request = tracker.held_messages.find(task_id)
    binding = part_of(carrier) if carrier is not None else None
    if binding is None and request is not None:
        binding = part_of(request.request_dict)
    if binding is not None:
        tracker.backlog.put(*part_ending(tracker, binding, status, message + OF_A_PART))


def report_next_delivery(app: Celery, task_id: str, carrier: Any, message: str, *, more_retries: int) -> None:
    """Write, in the background, that an attempt has ended and another delivery will follow.

    Args:
        carrier: as for ``report``.
        more_retries: the number of retries by which that delivery is ahead of this one.
    """
    writer = _CellWriter.find(app, task_id, carrier)
    if writer is not None:
        coming = writer.delivery._replace(retries=writer.delivery.retries + more_retries)
        requeued = coming == writer.delivery
        pause = Write.returned(
            *writer.cell, sanitize(message), coming, if_owner=writer.holder, awaits_delivery=requeued
        )
        writer.queue(lambda: writer.close_attempt(pause))


@dataclass(frozen=True)
class _CellWriter:
    """Writes the cell of a message whose outcome was reported to the main process.

    Attributes:
        request: the worker's request object, if it still holds one.
    """

    tracker: Tracker
    binding: Binding
    delivery: Delivery
    request: Any

    @classmethod
    def find(cls, app: Celery, task_id: str, carrier: Any) -> _CellWriter | None:
        """Return the writer for a message; None if the message is untracked or not known any more."""
        tracker = tracker_of(app)
        request = None if tracker is None else tracker.held_messages.find(task_id)
        held = None if request is None else request.request_dict
        source = carrier if carrier is not None and binding_of(carrier) else held
        binding = binding_of(source) if source else None
        if tracker is None or binding is None:
            return None
        return cls(tracker, binding, binding.delivery(source), request)

    @property
    def cell(self) -> tuple[str, int]:
        return self.binding.tag, self.binding.task_index

    @property
    def holder(self) -> tuple[str, Delivery]:
        """The owner of the attempt that may be closed: this worker, with this delivery."""
        return requests.worker_id(), self.delivery

    def queue(self, action: Callable[[], object]) -> None:
        name = leases.cell_name(self.binding.ref, self.binding.tag, self.binding.task_index)
        self.tracker.backlog.put((name, "outcome"), action, self.binding.log_extra)

    def has_succeeded(self) -> bool:
        """Return whether the process died after its task had stored its result; Celery 5.7 and later asks itself."""
        task = None if self.request is None else self.request.task
        return results.finish_if_succeeded(self.tracker, self.binding, task)

    def close_attempt(self, request: Write) -> WriteReply | None:
        """Write over this worker's open attempt; return None if there is none, or a later delivery may own it."""
        if self.tracker.held_messages.find(self.binding.celery_task_id) not in {None, self.request}:
            return None
        try:
            return self.write(request)
        except AttemptSuperseded:
            return None

    def write(self, request: Write) -> WriteReply:
        """Write the cell, and publish what this made due. Raises: AttemptSuperseded."""
        return publisher.write(self.tracker, self.binding.ref, request)
