"""A worker's main process: it names itself, keeps its lease, and writes what only it can know."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from celery import Celery

from celery_statemanager.errors import AttemptSuperseded, JobCancelled, JobNotFound
from celery_statemanager.integration import worker_requests
from celery_statemanager.integration.binding import Binding, binding_of, delivery_of
from celery_statemanager.integration.callbacks import publish_decided
from celery_statemanager.integration.installed import Tracker, tracker_of
from celery_statemanager.integration.keeper import Keeper
from celery_statemanager.limits import readable
from celery_statemanager.manager import new_event_id
from celery_statemanager.records import Delivery, When, Write, WriteReply

logger = logging.getLogger(__name__)


def on_init(**_: Any) -> None:
    """Name this worker before its children are made."""
    worker_requests.name_worker()


def on_ready(sender: Any = None, **_: Any) -> None:
    """Start keeping the lease, and sweeping."""
    tracker = tracker_of(sender.app)
    if tracker is not None:
        keeper = Keeper(tracker, worker_requests.worker_id())
        _keepers.append(keeper)
        keeper.start()


def on_shutdown(**_: Any) -> None:
    """Write what is left and give the lease back."""
    _writer.flush(timeout=10.0)
    while _keepers:
        _keepers.pop().stop()


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
        _writer.put(lambda: _write(tracker, binding, delivery, status, readable(message), began=began))


def _write(tracker: Tracker, binding: Binding, delivery: Delivery, status: int, message: str, *, began: bool) -> None:
    """Write the outcome over this worker's open attempt, else over a cell that nobody has open."""
    request = Write(
        tag=binding.tag,
        task_index=binding.task_index,
        status=status,
        message=message,
        event_id=new_event_id(),
        keeps_payload=True,
        cascades=True,
        when=When.IDLE,
    )
    try:
        reply = (_close(tracker, binding, delivery, request) if began else None) or tracker.store.write(
            binding.ref, request
        )
        publish_decided(tracker, binding.ref, reply.decided)
    except (AttemptSuperseded, JobCancelled, JobNotFound) as error:
        logger.info("outcome not written: %s", error)


def _close(tracker: Tracker, binding: Binding, delivery: Delivery, request: Write) -> WriteReply | None:
    holder = (worker_requests.worker_id(), delivery)
    closing = replace(request, when=When.OPEN, held_by=holder, closes=True, yields=True)
    try:
        return tracker.store.write(binding.ref, closing)
    except AttemptSuperseded:
        return None


class _Writer:
    """A queue with one thread, so that a slow store never holds up the main process."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def put(self, action: Callable[[], None]) -> None:
        self._queue.put(action)
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="statemanager-writer", daemon=True)
                self._thread.start()

    def flush(self, timeout: float) -> None:
        if self._thread is not None:
            done = threading.Event()
            self._queue.put(done.set)
            done.wait(timeout)

    def _run(self) -> None:
        while True:
            action = self._queue.get()
            try:
                action()
            except Exception:
                logger.exception("outcome not written")


_writer = _Writer()
_keepers: list[Keeper] = []
