"""Detect a blocked main loop of a worker. While it is blocked, the worker neither receives nor begins tasks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from celery.worker import state as worker_state


class MainLoop:
    """The main loop of a worker, as its lease reports it.

    Args:
        interval: the seconds between two ticks.
        clock: returns a time in seconds that never decreases.
    """

    def __init__(self, interval: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._clock = clock
        self._ticked_at = clock()
        self._consumer: Any = None
        self._timer_entry: Any = None
        self._is_asked = False
        self._runs_bodies = False

    def attach(self, consumer: Any, *, runs_bodies: bool) -> None:
        """Begin to observe the loop of a consumer, which has connected to its broker.

        Args:
            runs_bodies: whether the loop runs the bodies of tasks itself, as in the solo pool.
        """
        self._consumer, self._runs_bodies, self._is_asked = consumer, runs_bodies, False
        self._tick()
        if consumer.hub is not None:
            self._timer_entry = consumer.timer.call_repeatedly(self._interval, self._tick)

    def detach(self) -> None:
        """Stop observing the loop, because its connection is lost or the worker stops."""
        if self._timer_entry is not None:
            self._timer_entry.cancel()
        self._consumer = self._timer_entry = None

    def idle(self) -> float:
        """Return the seconds for which the loop has been blocked."""
        if self._runs_bodies and worker_state.active_requests:
            return 0.0
        consumer = self._consumer
        if consumer is not None and consumer.hub is None and not self._is_asked:
            # Without an event loop, the timers of some pools have threads of their own.
            self._is_asked = True
            consumer.call_soon(self._tick)
        return self._clock() - self._ticked_at

    def _tick(self) -> None:
        self._ticked_at, self._is_asked = self._clock(), False
