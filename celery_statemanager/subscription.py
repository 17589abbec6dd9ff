"""Subscriptions: a replay of the existing states, followed by live changes (rule R7).

The versions of each cell strictly increase, and the last one always arrives, even after lost connections. They go back
only if the store was restored from a copy or failed over to a replica: then the states that it has now are delivered.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from celery_statemanager import aggregate
from celery_statemanager.cursor import FIRST, Cursor, list_key_of
from celery_statemanager.errors import JobNotFound, StoreError, StoreUnavailable, SubscriptionLost
from celery_statemanager.feed import Feed
from celery_statemanager.limits import check_timeout
from celery_statemanager.models import Scope, State, StateEvent, event_from_fields
from celery_statemanager.records import Batch, JobRef
from celery_statemanager.retention import current
from celery_statemanager.stores.base import Store
from celery_statemanager.stores.transactional import CellKey

_LONGEST_READ = 3600.0
"""Maximum seconds of one read if there is no deadline."""

_Mark = tuple[int, int]
"""The version of a state and the hash of its event id."""

_UNSEEN: _Mark = (0, 0)


class Subscription:
    """An iterator over the existing states, oldest first, and then over changes. It is also a context manager.

    Only one thread may read it, but any thread may call ``close``. It ends when it is closed, when the job is deleted
    or, with ``until_settled``, when the job has settled or a rerun has begun. A slow reader receives the newest version
    of a cell instead of a growing backlog.

    Args:
        since: ``StateEvent.cursor`` of an event of this job: only cells that have changed since are yielded. If these
            are not known for certain, an event with ``resync`` and a replay are.
        clock: returns seconds of a monotonic clock, for the pauses of ``Feed``; tests replace it.
    """

    def __init__(
        self,
        store: Store,
        ref: JobRef,
        scope: Scope,
        *,
        until_settled: bool = False,
        since: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        start = None if since is None else Cursor.parse(since)
        position = start.position if start is not None and start.incarnation == ref.incarnation else None
        self._continues = since is not None
        self._store = store
        self._ref = ref
        self._scope = scope
        self._until_settled = self._must_check = until_settled
        self._closed = self._ending = self._must_list = False
        self._must_reset = self._must_catch_up = False
        self._listed, self._must_relist, self._list_after = True, False, FIRST
        self._replaying = True
        self._seen: dict[CellKey, _Mark] = {}
        self._listing: Iterator[StateEvent] = iter(())
        self._live: deque[tuple[State, str]] = deque()
        self._feed = Feed(store, ref, self._scope_to_watch(), clock, position)
        try:
            if start is None or position is None:
                self._must_reset = self._continues
                self._list()
            elif start.listed is not None:
                self._list_after = start.listed
                self._list()
        except BaseException:
            self._feed.close()
            raise

    @property
    def closed(self) -> bool:
        """Whether the subscription has ended. No further event follows."""
        return self._closed

    @property
    def connected(self) -> bool:
        """Whether the last access reached the store."""
        return self._feed.connected

    def get(self, timeout: float | None = None) -> StateEvent | None:
        """Return the next event, or None after ``timeout`` seconds or at the end (see ``closed``).

        Raises: SubscriptionLost, TypeError, ValueError.
        """
        seconds = check_timeout(timeout)
        return self._get_until(None if seconds is None else time.monotonic() + seconds)

    def close(self) -> None:
        """End the subscription. Repeated calls have no effect."""
        self._closed = True
        self._feed.close()

    def __iter__(self) -> Iterator[StateEvent]:
        return self

    def __next__(self) -> StateEvent:
        event = self._get_until(None)
        if event is None:
            raise StopIteration
        return event

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _get_until(self, deadline: float | None) -> StateEvent | None:
        try:
            event = self._get(deadline)
            mark = None if event is None else _mark_of(event.state)
        except JobNotFound:
            self.close()
            return None
        except SubscriptionLost:
            self.close()
            raise
        except BaseException:  # raised by a signal handler: it may have interrupted a listing
            self._must_list, self._must_reset, self._list_after = True, self._continues, FIRST
            raise
        if event is not None and mark is not None and not event.resync:  # last: an interrupted event comes again
            self._seen[event.state.tag, event.state.task_index] = mark
        return event

    def _get(self, deadline: float | None) -> StateEvent | None:
        while not self._closed:
            try:
                event = self._next_available()
                if event is not None:
                    return event
                if self._ending:
                    if not (self._must_catch_up and self._catch_up()):
                        self.close()
                elif self._must_check and self._has_settled():
                    self._ending = True
                    self._must_list, self._must_catch_up = not self._continues, self._continues
                elif not self._receive(deadline):
                    return None
            except StoreUnavailable as error:
                self._feed.mark_lost(error)
                self._must_relist = self._must_relist or not self._listed
                self._ending = self._must_check = False  # checked again after reconnecting
            except StoreError as error:
                raise SubscriptionLost(self._ref.key.job_id, str(error)) from error
        return None

    def _next_available(self) -> StateEvent | None:
        if self._must_list:
            self._must_list = False
            self._list()
        for event in self._listing:
            return event
        self._listed = True
        self._replaying = self._replaying and not self._feed.connected
        while self._live:
            state, cursor = self._live.popleft()
            if self._scope.holds(state.tag, state.task_index) and _is_newer(state, self._seen):
                return event_from_fields(state, False, f"{self._ref.incarnation}:{cursor}", False, False)
        return None

    def _list(self) -> None:
        """List the states to deliver; if a reset is due, forget those that were delivered."""
        self._listed = self._must_relist = False
        position = f"{self._ref.incarnation}:{self._feed.cursor}"
        states = self._store.list_states(self._ref, self._scope)
        after = self._list_after
        if after != FIRST:
            states = (state for state in states if list_key_of(state) > after)
        must_reset, self._must_reset = self._must_reset, False
        if must_reset:
            self._replaying = True
            self._seen.clear()
        self._listing = _changes(states, self._store, self._ref, self._seen, self._replaying, position)
        if must_reset:
            reset = event_from_fields(State(self._ref.key.job_id, 0, ""), True, position, True, True)
            self._listing = chain([reset], self._listing)

    def _catch_up(self) -> bool:
        """Read what was written before the job was found settled. Return whether anything may follow."""
        self._feed.renew()
        self._must_catch_up = False
        while True:
            batch = self._feed.read(0.0)
            self._take(batch)
            if self._must_list or not (batch.states or batch.job_changed):
                return bool(self._live) or self._must_list

    def _scope_to_watch(self) -> Scope:
        """Return all cells for a job without a plan, because it settles without a change of its record."""
        if not self._until_settled:
            self._planless, self._generation = False, 1
            return self._scope
        job = current(self._store, self._ref)
        self._planless, self._generation = job.plan is None, job.generation.number
        return Scope() if self._planless else self._scope

    def _has_settled(self) -> bool:
        """Return whether the job has settled or has a new generation.

        If so, the caller lists the states written before the answer.
        """
        self._must_check = False
        job, columns = self._store.column_summaries(self._ref)
        return job.generation.number > self._generation or aggregate.settled(job, columns)

    def _receive(self, deadline: float | None) -> bool:
        left = _LONGEST_READ if deadline is None else deadline - time.monotonic()
        was_connected = self._feed.connected
        batch = self._feed.read(max(left, 0.0))
        self._take(batch)
        self._must_list = self._must_list or (self._must_relist and self._feed.connected and not was_connected)
        may_have_settled = batch.resync or batch.job_changed or (self._planless and bool(batch.states))
        self._must_check = self._until_settled and may_have_settled
        return left > 0 or bool(batch.states) or batch.resync

    def _take(self, batch: Batch) -> None:
        if batch.resync:
            self._live.clear()  # the list is newer; a store that was restored may have older versions than these
            self._must_reset, self._list_after = self._continues, FIRST
        self._live.extend(zip(batch.states, batch.cursors))
        self._must_list = batch.resync


def _mark_of(state: State) -> _Mark:
    return state.version, hash(state.event_id)


def _is_newer(state: State, seen: dict[CellKey, _Mark]) -> bool:
    """Return whether a change follows the last state seen of its cell or, in a restored store, replaces it."""
    mark = seen.get((state.tag, state.task_index), _UNSEEN)
    return state.version > mark[0] or (state.version == mark[0] and _mark_of(state) != mark)


def _changes(
    states: Iterable[State], store: Store, ref: JobRef, seen: dict[CellKey, _Mark], replay: bool, position: str
) -> Iterator[StateEvent]:
    """Yield an event for each cell whose state differs from the last one seen, also if the store has lost it.

    The last event is marked: nothing of the listing is left after it. Not a method, because the generator would then
    refer to its subscription and keep an abandoned one alive.
    """
    missing = {key for key, mark in seen.items() if mark[0]}
    previous: State | None = None
    for state in states:
        key = (state.tag, state.task_index)
        if missing:
            missing.discard(key)
        if seen.get(key, _UNSEEN) != _mark_of(state):
            if previous is not None:
                yield event_from_fields(previous, replay, position, True, False)
            previous = state
    if missing:
        job = current(store, ref)
        for key in sorted(missing):
            if previous is not None:
                yield event_from_fields(previous, replay, position, True, False)
            previous = aggregate.missing_state(job, *key)
    if previous is not None:
        yield event_from_fields(previous, replay, position, False, False)
