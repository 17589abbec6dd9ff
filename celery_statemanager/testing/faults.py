"""A store with injected faults: lost responses, dropped notifications, outages, actions before or after a call.

``FaultyStore`` wraps any store, so an application meets the faults where real ones occur. In a worker, replace the
store that was created from the settings::

    states = StateManager(app)
    states.store = FaultyStore(states.store, down=Path("/tmp/store-is-down").exists)
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from celery_statemanager.errors import StoreUnavailable
from celery_statemanager.models import Scope
from celery_statemanager.records import Batch, JobRef
from celery_statemanager.stores.base import Watch
from celery_statemanager.stores.capabilities import FullStore
from celery_statemanager.stores.wrapped import WrappedStore

T = TypeVar("T")

_CHECK = 0.05
"""Seconds between two checks whether a watch delivers changes again."""

Action = Callable[[object], None]
"""An action before or after a call. It receives the result of the call, None before it. It may raise, kill or wait."""


@dataclass(slots=True)
class _Point:
    action: Action
    after: bool
    left: int


class FaultyStore(WrappedStore):
    """Pass calls on to a store, and inject faults on request. Thread-safe.

    Args:
        inner: the wrapped store. The caller closes it.
        down: called at each call; returns whether the store is unavailable. With the ``exists`` of a file, a test
            switches the stores of other processes.
    """

    def __init__(self, inner: FullStore, down: Callable[[], bool] = lambda: False) -> None:
        super().__init__(inner)
        self._switched = down
        self._down = threading.Event()
        self._silent = threading.Event()
        self._lock = threading.Lock()
        self._points: dict[str, deque[_Point]] = {}

    def at(self, method: str, action: Action, *, after: bool = False, times: int = 1) -> None:
        """Run an action at the next calls of a method: wait, kill the process or raise.

        Args:
            action: receives the result of the method, or None before the call.
            after: run the action after the store has done the call, instead of before.
        """
        with self._lock:
            self._points.setdefault(method, deque()).append(_Point(action, after, times))

    def lose_response(self, method: str, *, applied: bool, times: int = 1) -> None:
        """Make the next calls of a method raise ``StoreUnavailable``. The store does them if ``applied``."""

        def lose(_: object) -> None:
            raise StoreUnavailable(f"a fault injected by a test: the response to {method} was lost")

        self.at(method, lose, after=applied, times=times)

    @contextmanager
    def away(self) -> Iterator[None]:
        """Make calls and watches raise ``StoreUnavailable`` inside the block."""
        self._down.set()
        try:
            yield
        finally:
            self._down.clear()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Drop the changes of watches inside the block. Afterwards, the watches report that changes were missed."""
        self._silent.set()
        try:
            yield
        finally:
            self._silent.clear()

    def calling(self, method: str, call: Callable[[], T]) -> T:
        self._refuse_if_down()
        point = self._next(method)
        if point is not None and not point.after:
            point.action(None)
        result = call()
        if point is not None and point.after:
            point.action(result)
        return result

    def watch(self, ref: JobRef, scope: Scope, since: str | None = None) -> Watch:
        return _FaultyWatch(super().watch(ref, scope, since), self._refuse_if_down, self._silent.is_set)

    def _next(self, method: str) -> _Point | None:
        with self._lock:
            points = self._points.get(method)
            if not points:
                return None
            point = points[0]
            point.left -= 1
            if not point.left:
                points.popleft()
            return point

    def _refuse_if_down(self) -> None:
        if self._down.is_set() or self._switched():
            raise StoreUnavailable("a fault injected by a test: the store is down")


class _FaultyWatch(Watch):
    """A watch that fails with its store and drops changes while the store is silent."""

    def __init__(self, inner: Watch, refuse_if_down: Callable[[], None], silent: Callable[[], bool]) -> None:
        self._inner = inner
        self._refuse_if_down = refuse_if_down
        self._silent = silent
        self._missed = False
        self._closed = False

    @property
    def cursor(self) -> str:
        return self._inner.cursor

    def read(self, timeout: float) -> Batch:
        deadline = time.monotonic() + timeout
        while True:
            self._refuse_if_down()
            left = max(0.0, deadline - time.monotonic())
            batch = self._inner.read(self._wait(left))
            if not self._silent():
                missed, self._missed = self._missed, False
                return replace(batch, job_changed=batch.job_changed or missed, resync=batch.resync or missed)
            self._missed = self._missed or bool(batch.states) or batch.job_changed or batch.resync
            if not left or self._closed:
                return Batch([])

    def close(self) -> None:
        self._closed = True
        self._inner.close()

    def _wait(self, left: float) -> float:
        """Return the seconds of the next read: short while silent, to notice its end; 0 if changes were missed."""
        if self._silent():
            return min(left, _CHECK)
        return 0.0 if self._missed else left
