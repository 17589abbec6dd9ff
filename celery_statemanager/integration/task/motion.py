"""The clock of a running body: when it has moved last. A thread marks those that have stalled (rule R23).

The thread runs only in processes that run a task with ``stall_after``, one for all of them. It is a thread of the
operating system, so that a computing greenlet does not block it. It cannot run while a C function holds the lock of
the interpreter; then a sweep marks the attempt, without the place.
"""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from celery_statemanager import stalls
from celery_statemanager.durations import rough_duration
from celery_statemanager.errors import AttemptSuperseded, JobCancelled, JobNotFound, StoreError, TaskStalled
from celery_statemanager.greenlets import has_green_threads
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.integration.periodic import Periodic, Threads
from celery_statemanager.integration.stalling import Limit
from celery_statemanager.integration.task.places import Body
from celery_statemanager.leases import cell_name

if TYPE_CHECKING:
    from celery_statemanager.integration.task.run import Run
    from celery_statemanager.records import Cell
    from celery_statemanager.stores.base import Store

_LONGEST_PAUSE = 3_600.0
_SHORTEST_PAUSE = 0.01
_RETRY_AFTER = 1.0


class Motion:
    """When the body of one execution has moved last: it wrote a state, or waited for the store or in a barrier."""

    def __init__(self, run: Run, task: Any, limit: Limit, cell: Cell | None) -> None:
        self._run = run
        self._limit = limit
        self._body = Body(task)
        self._waits: list[None] = []
        self._barriers: list[None] = []
        self._written_at = self._moved_at = time.monotonic()
        self._cell = cell
        self._is_marked = False
        self._not_before = 0.0
        self._stood_in: str | None = None
        self.tracker = run.tracker
        self.name = cell_name(run.binding.ref, *run.cell)

    @property
    def due_in(self) -> float:
        """The seconds until it has stalled, unless it moves; never if it is marked."""
        if self._is_marked or self._run.ended:
            return _LONGEST_PAUSE
        return max(self._limit.after - self._still_for, self._not_before - time.monotonic())

    @property
    def _still_for(self) -> float:
        return 0.0 if self._waits else time.monotonic() - self._moved_at

    def wrote(self, cell: Cell) -> None:
        """Record that a state was written."""
        self._cell, self._is_marked, self._stood_in = cell, False, None
        self._written_at = self._moved_at = time.monotonic()

    @contextmanager
    def waits(self) -> Iterator[None]:
        """Count the time inside of the context as moving."""
        self._waits.append(None)
        try:
            yield
        finally:
            self._moved_at = time.monotonic()
            self._waits.pop()

    @contextmanager
    def waits_in_barrier(self) -> Iterator[None]:
        """Count the time as moving, and report that to the worker's main process, because a sweep cannot know it."""
        with self.waits():
            self._barriers.append(None)
            _report_moving(self.tracker)
            try:
                yield
            finally:
                self._barriers.pop()
        _report_moving(self.tracker)

    def moves_for(self) -> float | None:
        """Return for how many seconds it counts as moving though it writes nothing; None if it has not waited.

        The number is negative if it waited longer ago than its limit.
        """
        if self._barriers:
            return max(self._limit.after, self.tracker.settings.lease)
        if self._moved_at > self._written_at:
            return self._moved_at + self._limit.after - time.monotonic()
        return None

    def stop_if_stalled(self) -> None:
        """Raise ``TaskStalled`` if the policy is to stop and the body has stalled."""
        still = self._still_for
        if self._limit.stops and still >= self._limit.after:
            place = f", it stood in {self._stood_in}" if self._stood_in else ""
            reason = (
                f"stalled: nothing was written for {rough_duration(still)} (stall_after is {self._limit.after:g} s)"
            )
            raise TaskStalled(self._run.binding.ref.key.job_id, *self._run.cell, reason + place)

    def mark(self, store: Store) -> None:
        """Mark the attempt as stalled, with the place in which its body stands. Raises: StoreError."""
        run, cell = self._run, self._cell
        if cell is None or self.name in self.tracker.backlog.cells():
            self._moved_at = time.monotonic()  # it waits for the store
            return
        self._stood_in, self._is_marked = self._body.stands_in(), True  # a write of the body sets it to False
        since = cell.timestamp + round((self._moved_at - self._written_at) * 1_000_000)
        try:
            stalls.mark(store, run.binding.ref, *run.cell, cell, since, self._stood_in)
        except (AttemptSuperseded, JobCancelled, JobNotFound):
            return  # it has moved at this moment, or its job is gone
        except StoreError:
            self._is_marked, self._not_before = False, time.monotonic() + _RETRY_AFTER
            raise

    def begin(self) -> None:
        """Begin to watch the body."""
        _watch.add(self)

    def end(self) -> None:
        """Stop to watch the body."""
        has_waited = self.moves_for() is not None
        _watch.motions.pop(self, None)
        if has_waited:
            _report_moving(self.tracker)


class _Watch:
    """The bodies that are watched in this process, and the thread that marks them. It starts with the first body."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the bodies and the thread. A forked child does so, because they are those of its parent."""
        self.motions: dict[Motion, None] = {}
        self._starting = threading.Lock()
        self._thread: Periodic | None = None
        self._paused_until = math.inf
        """Infinite while the thread computes how long it pauses."""
        self._stores: weakref.WeakKeyDictionary[Tracker, Any] = weakref.WeakKeyDictionary()

    def add(self, motion: Motion) -> None:
        self.motions[motion] = None
        with self._starting:
            if self._thread is None:
                self._thread = Periodic("stalls", self._mark, self._pause, threads=Threads.native()).start()
        if motion.due_in < self._paused_until - time.monotonic():
            self._thread.hurry()

    def _mark(self) -> None:
        """Mark each body that has stalled. Raises: StoreError, after it has tried all."""
        failed: StoreError | None = None
        for motion in list(self.motions):
            if motion.due_in <= 0:
                try:
                    motion.mark(self._store(motion.tracker))
                except StoreError as error:
                    failed = error
        if failed is not None:
            raise failed

    def _pause(self) -> float:
        self._paused_until = math.inf
        pause = min((each.due_in for each in list(self.motions)), default=_LONGEST_PAUSE)
        pause = min(max(pause, _SHORTEST_PAUSE), _LONGEST_PAUSE)
        self._paused_until = time.monotonic() + pause
        return pause

    def _store(self, tracker: Tracker) -> Store:
        """Return a store that a thread may use beside greenlets."""
        if tracker not in self._stores:
            self._stores[tracker] = tracker.open_own_store() if has_green_threads() else tracker.store
        store: Store = self._stores[tracker]
        return store


_watch = _Watch()
os.register_at_fork(after_in_child=_watch.clear)


def moving(tracker: Tracker) -> dict[str, float]:
    """Return the cells whose bodies run in this process and have waited."""
    found = {each.name: each.moves_for() for each in list(_watch.motions) if each.tracker is tracker}
    return {name: seconds for name, seconds in found.items() if seconds is not None}


def _report_moving(tracker: Tracker) -> None:
    now = time.time()
    tracker.moving_files.replace([f"{now + seconds:.3f} {name}" for name, seconds in moving(tracker).items()])


def moving_cells(tracker: Tracker) -> dict[str, float]:
    """Return the cells whose bodies run in this process or its children and have waited; see ``Report.moving``."""
    now = time.time()
    lines = (line.partition(" ") for line in tracker.moving_files.of_children())
    return {**moving(tracker), **{name: float(until) - now for until, _, name in lines}}
