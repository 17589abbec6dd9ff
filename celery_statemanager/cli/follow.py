"""Read one job's cells, its record and the liveness of its workers until the watcher's condition is met."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from enum import Enum

from celery_statemanager import aggregate
from celery_statemanager.errors import JobNotFound, StoreUnavailable
from celery_statemanager.liveness import Activity, Liveness, liveness
from celery_statemanager.manager import Manager
from celery_statemanager.models import Scope, StateEvent
from celery_statemanager.records import Column, JobRecord, to_datetime
from celery_statemanager.retention import current
from celery_statemanager.stores.capabilities import Outbox
from celery_statemanager.subscription import Subscription

TICK = 0.5
"""Seconds without a change after which ``events`` yields None."""

QUIET = 10.0
"""Seconds without a write after which a job without a plan counts as settled, once all its cells are final."""

LOOK = 3.0
"""Minimum seconds between two reads of the worker records."""

_FRESH = 1.0
_STALE = 5.0


class Until(Enum):
    """When to stop reading."""

    NOW = "now"
    SETTLED = "settled"
    FOREVER = "forever"


class Follower:
    """Read the cells of a scope, and periodically the job's record and the worker records.

    ``close`` and the attributes may be used from any thread.

    Attributes:
        job: the record as last read.
        deleted: whether this incarnation of the job no longer exists.
        liveness: the workers of the job, as last read; None before the first read.

    Args:
        clock: seconds, monotonic; for tests.
    """

    def __init__(
        self,
        store: Outbox,
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
        self.liveness: Liveness | None = None
        self._clock = clock
        self._manager = Manager(store, job)
        self._subscription: Subscription | None = None
        self._closed = False
        self._offset = store.now() / 1_000_000 - clock()
        self._last_write = 0.0
        self._read_at = self._event_at = clock()
        self._look_at = 0.0
        self._checked: tuple[float, int] | None = None
        self._changed = False

    @property
    def now(self) -> datetime:
        """The store's time, computed from the local clock without a read."""
        return to_datetime(int(self._time() * 1_000_000))

    @property
    def connected(self) -> bool:
        """Whether the last attempt reached the store."""
        return self._subscription is None or self._subscription.connected

    def events(self) -> Iterator[StateEvent | None]:
        """Yield the existing states, then changes; yield None after each ``TICK`` without a change.

        Raises: SubscriptionLost, StoreError.
        """
        if self.until is Until.NOW:
            for state in self.store.list_states(self.job.ref, self.scope):
                if state.version:
                    yield StateEvent(state, replay=True)
            self._look()
            return
        planned = self.job.plan is not None
        self._subscription = self._manager.subscribe(
            self.scope.tag, self.scope.task_index, until_settled=planned and self.until is Until.SETTLED
        )
        with self._subscription as subscription:
            while not (self._closed or subscription.closed):
                event = subscription.get(TICK)
                self._observe(event)
                yield event
                if event is None and self._at_rest():
                    break
        self._read_job()

    def column_summaries(self) -> list[Column]:
        """Return the store's counts, whatever the size of the job. Raises: JobNotFound, StoreError."""
        self.job, columns = self.store.column_summaries(self.job.ref, self.scope.tag)
        return columns

    def failed(self) -> bool:
        """Return whether any expected cell of the scope has failed or is cancelled. Raises: JobNotFound, StoreError."""
        return self.store.lowest(self.job.ref, self.scope).status < 0

    def close(self) -> None:
        """Make ``events`` stop."""
        self._closed = True
        self._manager.close()

    def _time(self) -> float:
        return self._clock() + self._offset

    def _observe(self, event: StateEvent | None) -> None:
        now = self._clock()
        if event is not None:
            self._event_at = now
            if event.state.timestamp is not None:
                self._last_write = max(self._last_write, event.state.timestamp.timestamp())
                self._changed = self._changed or not event.replay
        since = now - self._read_at
        if since >= _STALE or (self._changed and since >= _FRESH):
            self._read_job()
        if now >= self._look_at and self._must_look(event, now):
            self._look()

    def _must_look(self, event: StateEvent | None, now: float) -> bool:
        """Return whether to read the worker records: always while a worker is missing, else in quiet times only."""
        known = self.liveness
        if known is None:
            return event is None
        return known.lost or known.activity is not Activity.WORKING or now - self._event_at >= LOOK

    def _look(self) -> None:
        """Read the worker records; the next read is due in ``LOOK`` seconds or when the last lease ends, if sooner."""
        self._look_at = self._clock() + LOOK
        try:
            self.liveness = liveness(self.store, self.job)
        except StoreUnavailable:
            return  # the subscription reconnects and reports it
        lease_until = self.liveness.lease_until
        if lease_until is not None:
            left = lease_until / 1_000_000 - self._time()
            self._look_at = self._clock() + min(LOOK, max(left, TICK))

    def _read_job(self) -> None:
        self._read_at, self._changed = self._clock(), False
        try:
            self.job = current(self.store, self.job.ref)
        except JobNotFound:
            self.deleted = True
        except StoreUnavailable:
            pass  # the subscription reconnects and reports it

    def _at_rest(self) -> bool:
        """Return whether a job without a plan has settled. Between two stages it may appear settled for a moment.

        The store is asked once for each state of the job, not at each tick.
        """
        if self.until is not Until.SETTLED or self.job.plan is not None:
            return False
        last_write = max(self._last_write, self.job.last_activity / 1_000_000)
        known = (last_write, self.job.revision)
        if self._time() - last_write < QUIET or known == self._checked:
            return False
        try:
            self.job, columns = self.store.column_summaries(self.job.ref)
        except (JobNotFound, StoreUnavailable):
            return False
        self._checked = known
        return aggregate.settled(self.job, columns) and self._time() - self.job.last_activity / 1_000_000 >= QUIET
