"""One watch per job and process for all its asynchronous subscribers, in any event loop (rule R24).

A thread reads a subscription and appends its events to a log. The log contains the last event of each cell, in the
order of the changes. A subscriber stores a position in the log and at most ``CHUNK`` events. A slow subscriber skips
versions.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right

from celery_statemanager import aggregate
from celery_statemanager.models import Scope, StateEvent
from celery_statemanager.records import Batch, JobRef
from celery_statemanager.retention import current
from celery_statemanager.sharing import Sharing
from celery_statemanager.stores.base import Store
from celery_statemanager.stores.transactional import CellKey
from celery_statemanager.subscription import Subscription
from celery_statemanager.turns import Turns

CHUNK = 32
"""Maximum number of events that a subscriber takes from the log before other tasks of its event loop run."""

Chunk = tuple[tuple[int, StateEvent], ...]
"""Events with their numbers."""


class StateLog:
    """The last event of each cell, in the order of the changes. Thread-safe.

    Attributes:
        end: the number of the last event.
    """

    def __init__(self) -> None:
        self.end = 0
        self._lock = threading.Lock()
        self._numbers: list[int] = []
        self._events: list[StateEvent] = []
        self._newest: dict[CellKey, int] = {}
        self._last_read: tuple[tuple[int, int], Chunk] = ((-1, 0), ())

    def add(self, event: StateEvent) -> None:
        """Append an event, which replaces earlier ones of its cell. Only one thread may call it."""
        with self._lock:
            self._newest[event.state.tag, event.state.task_index] = self.end + 1
            self._numbers.append(self.end + 1)
            self._events.append(event)
            self.end += 1
        if len(self._numbers) > 2 * len(self._newest) + 64:
            live = [each for each in zip(self._numbers, self._events) if self._is_live(*each)]
            numbers, events = [number for number, _ in live], [event for _, event in live]
            with self._lock:  # readers wait only for the assignment, because no other thread adds events
                self._numbers, self._events = numbers, events

    def after(self, number: int) -> Chunk:
        """Return the first events after one of this number. Subscribers at the same number get the same object."""
        with self._lock:
            request = number, self.end
            if self._last_read[0] != request:
                found: list[tuple[int, StateEvent]] = []
                for at in range(bisect_right(self._numbers, number), len(self._numbers)):
                    if self._is_live(self._numbers[at], self._events[at]):
                        found.append((self._numbers[at], self._events[at]))
                        if len(found) == CHUNK:
                            break
                self._last_read = request, tuple(found)
            return self._last_read[1]

    def get(self, number: int) -> StateEvent | None:
        """Return the event of this number, or None if a later one of its cell exists."""
        with self._lock:
            at = bisect_left(self._numbers, number)
            if at == len(self._numbers) or self._numbers[at] != number:
                return None
            return self._events[at] if self._is_live(number, self._events[at]) else None

    def numbers_of(self, versions: dict[CellKey, int]) -> tuple[list[int], int]:
        """Return the numbers of the events of these cells in increasing order, and the number of the last event.

        A cell whose version has not arrived is left out: its event will have a later number.
        """
        end, found = self.end, []
        for key, version in versions.items():
            number = self._newest.get(key, end + 1)
            event = self.get(number) if number <= end else None
            if event is not None and event.state.version >= version:
                found.append(number)
        return sorted(found), end

    def _is_live(self, number: int, event: StateEvent) -> bool:
        return self._newest[event.state.tag, event.state.task_index] == number


class Hub:
    """Feeds the subscribers of a job from one subscription, which a thread of its own reads.

    Attributes:
        log: the events.
        listed: set when the existing states are in the log, or when the hub has ended.
        ended: whether no further event follows.
        error: why it has ended; None if it was closed or the job was deleted.
        users: the number of its subscribers.
        turns: those of its subscribers. A change of the log is reported to them.
        checks_settlement: whether a subscriber waits until the job settles.
        settlement: the result of the last check that found a settled job or a new generation: the number of the last
            event that preceded it, the generation, and whether it has settled.
    """

    def __init__(self, store: Store, ref: JobRef, scope: Scope) -> None:
        self.log = StateLog()
        self.listed = threading.Event()
        self.ended = False
        self.error: Exception | None = None
        self.users = 0
        self.turns = Turns()
        self.checks_settlement = False
        self.settlement = (0, 0, False)
        self._store, self._ref, self._scope = store, ref, scope
        self._starting = threading.Lock()
        self._source: _Source | None = None

    def start(self) -> None:
        """Start the thread, unless it runs. Raises: JobNotFound, StoreError."""
        with self._starting:
            if self._source is None:
                self._source = _Source(self._store, self._ref, self._scope, self)
                threading.Thread(target=self._run, name="statemanager-hub", daemon=True).start()

    def close(self) -> None:
        """End the thread without waiting for it."""
        with self._starting:
            if self._source is not None:
                self._source.close()

    @property
    def connected(self) -> bool:
        """Whether the last access reached the store."""
        return self._source is None or self._source.connected

    def _run(self) -> None:
        assert self._source is not None
        try:
            for event in self._source:
                self.log.add(event)
        except Exception as error:  # noqa: BLE001 - the subscribers raise it
            self.error = error
        finally:
            self.ended = True
            self.listed.set()
            self._source.close()
            self.turns.notify()


class _Source(Subscription):
    """The subscription of a hub."""

    def __init__(self, store: Store, ref: JobRef, scope: Scope, hub: Hub) -> None:
        self._hub = hub
        self._may_have_settled = False
        self._found: tuple[int, bool] | None = None
        self._has_plan = current(store, ref).plan is not None
        super().__init__(store, ref, scope)

    def _receive(self, deadline: float | None) -> bool:
        """Report the events so far, and wait for more."""
        hub = self._hub
        if self._found is not None and self._feed.connected:  # the states before it are in the log
            hub.settlement, self._found = (hub.log.end, *self._found), None
        if self._may_have_settled and hub.checks_settlement and self._feed.connected:
            self._may_have_settled = False
            job, columns = self._store.column_summaries(self._ref)
            found = job.generation.number, aggregate.settled(job, columns)
            if found[1] or found[0] > hub.settlement[1]:
                self._found, self._must_list = found, True
                return True
        if self._listed and not self._must_relist:
            hub.listed.set()
        hub.turns.notify()
        return super()._receive(deadline)

    def _take(self, batch: Batch) -> None:
        super()._take(batch)
        if batch.job_changed or batch.resync or (batch.states and not self._has_plan):
            self._may_have_settled = True


hubs: Sharing[tuple[JobRef, Scope], Hub] = Sharing(lambda store, key: Hub(store, *key))
"""The hubs of this process, by job and scope."""
