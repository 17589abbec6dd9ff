"""One job's cells, read until the watcher's wish is met."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from enum import Enum

from celery_statemanager import aggregate
from celery_statemanager.errors import JobNotFound, StoreUnavailable
from celery_statemanager.manager import Manager
from celery_statemanager.models import Scope, StateEvent
from celery_statemanager.records import Column, JobRecord, to_datetime
from celery_statemanager.retention import current
from celery_statemanager.stores import Store
from celery_statemanager.subscription import Subscription

TICK = 0.5
"""Seconds without a change after which a reader is told that there was none."""

QUIET = 10.0
"""Seconds without a write after which a job without a plan counts as settled, once all its cells are final."""

_FRESH = 1.0
_STALE = 5.0


class Until(Enum):
    """When to stop reading."""

    NOW = "now"
    SETTLED = "settled"
    FOREVER = "forever"


class Follower:
    """Reads the cells of a scope and, now and then, the job's record. ``close`` and the properties are for any thread.

    Attributes:
        job: the record as last read.
        deleted: whether the job was found gone.

    Args:
        clock: seconds, monotonic; for tests.
    """

    def __init__(
        self,
        store: Store,
        job: JobRecord,
        scope: Scope,
        until: Until = Until.SETTLED,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.job = job
        self.scope = scope
        self.until = until
        self.deleted = False
        self._clock = clock
        self._manager = Manager(store, job)
        self._subscription: Subscription | None = None
        self._closed = False
        self._ahead = store.now() / 1_000_000 - clock()
        self._last_write = 0.0
        self._read_at = clock()
        self._asked_about: tuple[float, int] | None = None
        self._changed = False

    @property
    def now(self) -> datetime:
        """The store's time, reckoned without asking it again."""
        return to_datetime(int(self._time() * 1_000_000))

    @property
    def connected(self) -> bool:
        """Whether the store could be reached at the last try."""
        return self._subscription is None or self._subscription.connected

    def events(self) -> Iterator[StateEvent | None]:
        """Give what exists, then changes; None after each ``TICK`` without one.

        Raises: SubscriptionLost, StoreError.
        """
        if self.until is Until.NOW:
            for state in self.store.list_states(self.job.ref, self.scope):
                if state.version:
                    yield StateEvent(state, replay=True)
            return
        planned = self.job.plan is not None
        self._subscription = self._manager.subscribe(
            self.scope.tag, self.scope.task_index, until_settled=planned and self.until is Until.SETTLED
        )
        with self._subscription as subscription:
            while not (self._closed or subscription.closed):
                event = subscription.get(TICK)
                self._heed(event)
                yield event
                if event is None and self._at_rest():
                    break
        self._read_job()

    def column_summaries(self) -> list[Column]:
        """Give what the store has counted, whatever the size of the job. Raises: JobNotFound, StoreError."""
        self.job, columns = self.store.column_summaries(self.job.ref, self.scope.tag)
        return columns

    def failed(self) -> bool:
        """Whether any expected cell of the scope has failed or was cancelled. Raises: JobNotFound, StoreError."""
        return self.store.lowest(self.job.ref, self.scope).status < 0

    def close(self) -> None:
        """End ``events``."""
        self._closed = True
        self._manager.close()

    def _time(self) -> float:
        return self._clock() + self._ahead

    def _heed(self, event: StateEvent | None) -> None:
        if event is not None and event.state.timestamp is not None:
            self._last_write = max(self._last_write, event.state.timestamp.timestamp())
            self._changed = self._changed or not event.replay
        since = self._clock() - self._read_at
        if since >= _STALE or (self._changed and since >= _FRESH):
            self._read_job()

    def _read_job(self) -> None:
        self._read_at, self._changed = self._clock(), False
        try:
            self.job = current(self.store, self.job.ref)
        except JobNotFound:
            self.deleted = True
        except StoreUnavailable:
            pass  # the subscription finds out too, heals itself and says so

    def _at_rest(self) -> bool:
        """Whether a job without a plan has come to rest: it may look settled between two stages for a moment.

        The store is asked once for each state of things, not at each tick.
        """
        if self.until is not Until.SETTLED or self.job.plan is not None:
            return False
        last_write = max(self._last_write, self.job.last_activity / 1_000_000)
        heard = (last_write, self.job.revision)
        if self._time() - last_write < QUIET or heard == self._asked_about:
            return False
        try:
            self.job, columns = self.store.column_summaries(self.job.ref)
        except (JobNotFound, StoreUnavailable):
            return False
        self._asked_about = heard
        return aggregate.settled(self.job, columns) and self._time() - self.job.last_activity / 1_000_000 >= QUIET
