"""The step that this package adds to a worker's consumer. It also runs in workers that send no ``worker_ready``."""

from __future__ import annotations

import signal
import threading
from typing import Any

from celery import bootsteps
from celery.concurrency import solo

from celery_statemanager import leases
from celery_statemanager.integration.installed import tracker_of
from celery_statemanager.integration.worker import main
from celery_statemanager.integration.worker.main_loop import MainLoop

_STOPPING = (bootsteps.CLOSE, bootsteps.TERMINATE)  # type: ignore[attr-defined] # incomplete stubs
_SHUTDOWN_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGQUIT") if hasattr(signal, name)]


class TrackingStep(bootsteps.StartStopStep):
    """Keeps the lease of a worker from its first connection to the broker until its pool has stopped.

    It ends before the connection is closed, so that the record is final when the broker delivers messages again.
    """

    requires = ("celery.worker.consumer.connection:Connection",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._main_loop: MainLoop | None = None
        self._threads: main.WorkerThreads | None = None

    def start(self, consumer: Any) -> None:
        """Begin to renew the lease, or continue after a new connection."""
        tracker = tracker_of(consumer.app)
        if tracker is None:
            return
        if self._main_loop is None:
            self._main_loop = MainLoop(tracker.settings.lease / leases.RENEWALS)
        self._main_loop.attach(consumer, runs_bodies=isinstance(consumer.pool, solo.TaskPool))
        if self._threads is None:
            self._threads = main.WorkerThreads(tracker, self._main_loop, consumer.pool)
            _announce_at_signals()

    def stop(self, consumer: Any) -> None:
        """Record the cancelled requests: after a lost connection, or because the worker stops."""
        tracker = tracker_of(consumer.app)
        if tracker is None or self._main_loop is None:
            return
        tracker.held_messages.find_stopped()
        self._main_loop.detach()
        if self._threads is None:
            return
        if consumer.blueprint.state in _STOPPING:
            self._threads.announce_stop()
        else:
            self._threads.note_connection_end()

    def shutdown(self, consumer: Any) -> None:
        """End the lease. Celery sends ``worker_shutdown`` only later, or not at all."""
        if self._threads is not None:
            self._threads.stop()


def _announce_at_signals() -> None:
    """Record at once that a shutdown begins: Celery sends ``worker_shutting_down`` only after a soft shutdown."""
    if threading.current_thread() is threading.main_thread():
        for number in _SHUTDOWN_SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                signal.signal(number, _announcing(handler))


def _announcing(handler: Any) -> Any:
    def announce(number: int, frame: Any) -> None:
        main.on_stopping()
        handler(number, frame)

    return announce
