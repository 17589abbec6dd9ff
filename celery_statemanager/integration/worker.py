"""A worker's main process: it names itself, keeps its lease, and writes what only it can know."""

from __future__ import annotations

import logging
import os
import queue
import secrets
import socket
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from celery import Celery
from celery.worker import state as worker_state

from celery_statemanager import leases
from celery_statemanager.errors import AttemptSuperseded, JobCancelled, JobNotFound
from celery_statemanager.integration.binding import Binding, binding_of, delivery_of
from celery_statemanager.integration.callbacks import publish_decided
from celery_statemanager.integration.installed import Tracker, tracker_of
from celery_statemanager.integration.run import WORKER_ID
from celery_statemanager.limits import readable
from celery_statemanager.manager import new_event_id
from celery_statemanager.records import Delivery, When, Write, WriteReply

logger = logging.getLogger(__name__)

_received: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
"""Celery task id → the worker's request object: some outcomes come without their headers."""


def on_init(**_: Any) -> None:
    """Name this worker before its children are made."""
    os.environ[WORKER_ID] = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def on_ready(sender: Any = None, **_: Any) -> None:
    """Start keeping the lease."""
    tracker = tracker_of(sender.app)
    if tracker is not None:
        _keeper.start(tracker, os.environ[WORKER_ID])


def on_shutdown(**_: Any) -> None:
    """Write what is left and give the lease back."""
    _writer.flush(timeout=10.0)
    _keeper.stop()


def remember(request: Any) -> None:
    """Keep a received message findable by its id, for as long as the worker holds it."""
    if binding_of(request.request_dict) is not None:
        _received[request.id] = request


def report(app: Celery, task_id: str, carrier: Any, status: int, message: str, *, began: bool) -> None:
    """Write an outcome that only the main process sees, in the background.

    Args:
        carrier: what holds the message's headers; None to go by the id alone.
        began: whether the body had begun, as far as Celery tells.
    """
    tracker = tracker_of(app)
    known = _received.get(task_id)
    source = carrier if carrier is not None and binding_of(carrier) else known and known.request_dict
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
    holder = (os.environ.get(WORKER_ID, ""), delivery)
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


class _Keeper:
    """Renews the worker's lease from a thread of its own: no event loop or pool can hold it up."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, tracker: Tracker, worker_id: str) -> None:
        self._stopped.clear()
        self._thread = threading.Thread(
            target=self._run, args=(tracker, worker_id), name="statemanager-lease", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)

    def _run(self, tracker: Tracker, worker_id: str) -> None:
        lease = tracker.settings.lease
        while True:
            try:
                leases.renew(tracker.store, worker_id, _running(), lease)
            except Exception:
                logger.warning("lease not renewed", exc_info=True)
            if self._stopped.wait(lease / 3):
                break
        try:
            tracker.store.drop_worker(worker_id)
        except Exception:
            logger.warning("lease not given back", exc_info=True)


def _running() -> list[str]:
    for _ in range(10):
        try:
            return [request.id for request in tuple(worker_state.active_requests) if request.id in _received]
        except RuntimeError:  # the set changed while it was copied
            continue
    return []


_writer = _Writer()
_keeper = _Keeper()
