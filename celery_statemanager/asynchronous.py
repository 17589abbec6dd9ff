"""Subscriptions for asynchronous code. Those of one job and process share one watch."""

from __future__ import annotations

import asyncio
import threading
import weakref
from array import array
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from celery_statemanager import aggregate, hub
from celery_statemanager.cursor import Cursor
from celery_statemanager.errors import StoreUnavailable
from celery_statemanager.feed import NO_CELLS
from celery_statemanager.models import Scope, StateEvent, event_from_fields
from celery_statemanager.records import JobRef
from celery_statemanager.stores.base import Store
from celery_statemanager.stores.transactional import CellKey
from celery_statemanager.subscription import Subscription

LISTING_TIMEOUT = 60.0
"""Seconds within which the hub must have listed the job. After that the store is treated as unavailable."""


class AsyncSubscription(AsyncIterator[StateEvent]):
    """An asynchronous iterator over the existing states, and then over changes, as ``Subscription``.

    It opens at its first use, in any event loop. Only one task may read it at a time. A read that is cancelled, for
    example by ``asyncio.wait_for``, loses no event. The subscription closes at its end, at the end of ``async with``,
    by ``aclose``, or when no reference to it is left, for example after ``break``.
    """

    def __init__(
        self, store: Store, ref: JobRef, scope: Scope, *, until_settled: bool = False, since: str | None = None
    ) -> None:
        self._start = None if since is None else Cursor.parse(since)
        self._store, self._ref, self._scope = store, ref, scope
        self._until_settled, self._since = until_settled, since
        self._lock = threading.RLock()
        self._hub: hub.Hub | None = None
        self._settled: Subscription | None = None
        self._opening: asyncio.Future[None] | None = None
        self._closed = False
        self._generation = self._position = self._existing = 0
        self._changed: array[int] = array("q")
        self._events: deque[StateEvent] = deque()
        self._has_turn = True
        self._reader: weakref.ref[asyncio.Task[Any]] | None = None

    @property
    def closed(self) -> bool:
        """Whether the subscription has ended. No further event follows."""
        return self._closed

    @property
    def connected(self) -> bool:
        """Whether the last access reached the store."""
        joined, settled = self._hub, self._settled
        return (joined is None or joined.connected) and (settled is None or settled.connected)

    async def next_batch(self) -> list[StateEvent]:
        """Return the next events, as many as are available but at least one; an empty list at the end.

        Raises: JobNotFound, StoreError, SubscriptionLost.
        """
        try:
            first = await anext(self)
        except StopAsyncIteration:
            return []
        found = [first, *self._events]
        self._events.clear()
        return found

    async def aclose(self) -> None:
        """End the subscription. Repeated calls have no effect."""
        self.close()

    async def __aenter__(self) -> AsyncSubscription:
        await self._open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def __aiter__(self) -> AsyncSubscription:
        """Return the subscription. It also closes when the task that iterates over it ends or is cancelled."""
        reader, reference = asyncio.current_task(), weakref.ref(self)
        self._reader = None if reader is None else weakref.ref(reader)

        def close(ended: asyncio.Task[Any]) -> None:  # a cancelled task may keep its reference to the subscription
            subscription = reference()
            if subscription is not None and subscription._reader is not None and subscription._reader() is ended:
                subscription.close()

        if reader is not None:
            reader.add_done_callback(close)
        return self

    def __del__(self) -> None:
        if hasattr(self, "_lock"):
            self.close()

    async def __anext__(self) -> StateEvent:
        if not self._events:
            await self._open()
            while not self._events:
                if self._closed or not await self._read():
                    self.close()
                    raise StopAsyncIteration
        return self._events.popleft()

    async def _open(self) -> None:
        if self._opening is None:
            self._opening = asyncio.ensure_future(asyncio.to_thread(self._join))
            self._opening.add_done_callback(lambda opening: opening.cancelled() or opening.exception())
        if not self._opening.done():
            await asyncio.shield(self._opening)
        self._opening.result()

    def _join(self) -> None:
        """Join the hub of the job, in a thread. Raises: JobNotFound, StoreError."""
        if self._until_settled and self._has_settled():
            self._join_settled()
            return
        joined = hub.hubs.acquire(self._store, self._key)
        try:
            if self._until_settled:
                joined.checks_settlement = True  # before the check, so that the hub checks after all later changes
            settled = self._until_settled and self._has_settled()
            if settled:
                self._join_settled()
            elif self._since is not None:
                self._find_changed(joined)
            else:
                self._existing = joined.log.end
        except BaseException:
            hub.hubs.release(self._store, self._key, joined)
            raise
        with self._lock:
            if not (settled or self._closed):
                self._hub = joined
                return
        hub.hubs.release(self._store, self._key, joined)

    @property
    def _key(self) -> tuple[JobRef, Scope]:
        """The job, and the scope of its hub: all cells, or the record of the job alone."""
        return self._ref, NO_CELLS if self._scope == NO_CELLS else Scope()

    def _join_settled(self) -> None:
        """Read a settled job without a hub."""
        if self._scope == NO_CELLS:
            self.close()
            return
        events = Subscription(self._store, self._ref, self._scope, until_settled=True, since=self._since)
        with self._lock:
            self._settled = events
            if self._closed:
                events.close()

    def _has_settled(self) -> bool:
        job, columns = self._store.column_summaries(self._ref)
        self._generation = job.generation.number
        return aggregate.settled(job, columns)

    def _find_changed(self, joined: hub.Hub) -> None:
        """Find the cells that have changed since the cursor. The hub delivers their states, and all later ones."""
        if not joined.listed.wait(LISTING_TIMEOUT):
            job_id = self._ref.key.job_id
            raise StoreUnavailable(f"the states of job {job_id!r} were not read within {LISTING_TIMEOUT:g} s")
        versions: dict[CellKey, int] = {}
        with Subscription(self._store, self._ref, self._scope, since=self._since) as earlier:
            while (event := earlier.get(0.0)) is not None:
                if event.resync:
                    self._events.append(event)
                    self._existing = joined.log.end
                    return
                versions[event.state.tag, event.state.task_index] = event.state.version
            if not (earlier.connected or earlier.closed):
                raise StoreUnavailable(f"the connection to the store of job {self._ref.key.job_id!r} was lost")
        changed, self._position = joined.log.numbers_of(versions)
        self._changed = array("q", reversed(changed))

    async def _read(self) -> bool:
        """Take some events. Return False at the end."""
        if self._settled is not None:
            self._events.extend(await asyncio.to_thread(self._read_settled, self._settled))
            return bool(self._events) or not self._settled.closed
        joined = self._hub
        assert joined is not None
        ended, settlement = joined.ended, joined.settlement  # before the log is read, which then contains all events
        if not self._has_turn:
            waits = not (self._changed or self._position < joined.log.end or ended or self._is_over(settlement))
            await joined.turns.take(after_change=waits)
            self._has_turn = True
            return True
        self._has_turn = False
        if self._changed:
            self._take_changed(joined)
            return True
        chunk = joined.log.after(self._position)
        if chunk:
            self._take(chunk)
            return True
        if ended and joined.error is not None:
            self.close()
            raise joined.error
        return not (ended or self._is_over(settlement))

    def _is_over(self, settlement: tuple[int, int, bool]) -> bool:
        number, generation, settled = settlement
        is_later = generation > self._generation or (generation == self._generation and settled)
        return self._until_settled and is_later and self._position >= number

    def _take_changed(self, joined: hub.Hub) -> None:
        for _ in range(min(hub.CHUNK, len(self._changed))):
            event = joined.log.get(self._changed.pop())
            if event is not None:  # otherwise a later one follows
                self._events.append(_as(event, replay=self._start is not None and self._start.listed is not None))

    def _take(self, chunk: hub.Chunk) -> None:
        for number, event in chunk:
            if self._scope.holds(event.state.tag, event.state.task_index):
                self._events.append(event if number > self._existing else _as(event, replay=True))
        self._position = chunk[-1][0]

    @staticmethod
    def _read_settled(events: Subscription) -> list[StateEvent]:
        found: list[StateEvent] = []
        while len(found) < hub.CHUNK and (event := events.get(0.1)) is not None:
            found.append(event)
        return found

    def close(self) -> None:
        """End the subscription. Any thread may call it; repeated calls have no effect."""
        with self._lock:
            joined, self._hub, self._closed = self._hub, None, True
        if joined is not None:
            hub.hubs.release(self._store, self._key, joined)
        if self._settled is not None:
            self._settled.close()


def _as(event: StateEvent, *, replay: bool) -> StateEvent:
    if event.replay == replay:
        return event
    return event_from_fields(event.state, replay, event.position, event.in_listing, event.resync)


async def exhaust(events: AsyncSubscription) -> None:
    """Read a subscription to its end."""
    async for _ in events:
        pass
