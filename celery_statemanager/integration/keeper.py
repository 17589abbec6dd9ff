"""The threads that keep a worker's lease and sweep: no event loop or pool can hold them up."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from celery_statemanager import leases
from celery_statemanager.errors import ConfigurationError, StoreError, StoreUnavailable
from celery_statemanager.integration import kept, pending, policy, worker_requests
from celery_statemanager.integration.background import backlog
from celery_statemanager.integration.binding import Binding, delivery_of
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.integration.sweeper import sweep
from celery_statemanager.leases import Received, Report, cell_name
from celery_statemanager.records import Delivery

logger = logging.getLogger(__name__)

JITTER = (0.6, 1.0)

AFTER_FAILURE = 2.0
"""Seconds until the next try of what has failed, if it would not come sooner."""

TOLD_EVERY = 60.0
"""Seconds until trouble that has not changed is logged again."""

NO_ROOM = {
    "cells": "the worker's record has no room for all cells that it is at (%s): until it has, none of its attempts is "
    "taken for lost while it lives",
    "received": "the worker's record has no room for all messages that it has received (%s): should it die, the broker "
    "alone knows of the others; a lower worker_prefetch_multiplier mends it or, where they wait for their eta, a "
    "worker_eta_task_limit",
}
"""What is logged when a record begins to be cut."""


class Periodic:
    """A daemon thread that does something again and again until it is stopped; what fails is logged.

    Args:
        pause: gives the seconds until the next time.
        last: done once after it was stopped.
    """

    def __init__(
        self,
        name: str,
        action: Callable[[], object],
        pause: Callable[[], float],
        last: Callable[[], object] | None = None,
    ) -> None:
        self._name = name
        self._action = action
        self._pause = pause
        self._last = last
        self._told, self._silent_until = "", 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"statemanager-{name}", daemon=True)

    def start(self) -> Periodic:
        """Start the thread."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop the thread and wait for it, but not for ever."""
        self._stopped.set()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        while not self._stopped.is_set():
            done = self._try(self._action)
            self._stopped.wait(self._pause() if done else min(self._pause(), AFTER_FAILURE))
        if self._last is not None:
            self._try(self._last)

    def _try(self, action: Callable[[], object]) -> bool:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - the thread goes on whatever happens
            self._tell(error)
            return False
        if self._told:
            logger.warning("%s works again", self._name)
            self._told = ""
        return True

    def _tell(self, error: Exception) -> None:
        """Log a failure; the same one again only after a while."""
        said = f"{type(error).__name__}: {error}"
        if said == self._told and time.monotonic() < self._silent_until:
            return
        self._told, self._silent_until = said, time.monotonic() + TOLD_EVERY
        if isinstance(error, (StoreError, ConfigurationError)):
            logger.warning("%s failed; the next time may do: %s", self._name, error)
        else:
            logger.warning("%s failed; the next time may do", self._name, exc_info=error)


class Lease:
    """One worker's record, renewed with what it does at that moment.

    Args:
        clock: gives the time in seconds since whenever.
    """

    def __init__(self, tracker: Tracker, worker_id: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._tracker = tracker
        self._clock = clock
        self._worker_id = worker_id
        self._due = self._due_for_news = -math.inf
        self._ran: dict[str, float | None] = {}
        """What was found running, and when the record first told that it had ended."""
        self._listed: set[weakref.ref[Any]] = set()
        """The received messages that the record lists, or has no room for."""
        self._seen: set[weakref.ref[Any]] = set()
        """The received messages that the last look found."""
        self._lacking: set[str] = set()
        """What the record has no room for, as ``NO_ROOM`` calls it."""

    def keep(self) -> Periodic:
        """Start renewing it; stopping gives it back."""
        often = self._tracker.settings.lease / leases.LOOKS
        give_back = lambda: self._tracker.store.drop_worker(self._worker_id)  # noqa: E731 - shorter than its name
        return Periodic("lease", self.renew_where_needed, lambda: often, give_back).start()

    def renew_where_needed(self) -> None:
        """Renew it if it is time, or if it lacks a message that is held for longer than a look. Raises: StoreError."""
        seen, self._seen = self._seen, worker_requests.waiting()
        now = self._clock()
        if now >= self._due:
            self.renew()
        elif now >= self._due_for_news and (seen & self._seen) - self._listed:
            self.renew()
            self._due_for_news = now + self._tracker.settings.lease / leases.NEWS

    def renew(self) -> None:
        """Write the record: what runs, what ended less than a renewal ago, what waits. Raises: StoreError."""
        now, renewal = self._clock(), self._tracker.settings.lease / leases.RENEWALS
        listed = worker_requests.waiting()
        received = {_name(*each): each for each in worker_requests.received()}
        running = dict.fromkeys(cell_name(each.ref, each.tag, each.task_index) for each in worker_requests.running())
        self._ran.update(running)
        ended = {name: now if told is None else told for name, told in self._ran.items() if name not in running}
        before = sorted(name for name, told in ended.items() if now - told < renewal)
        pending_cells = [*backlog.cells(), *pending.told()]
        report = Report([*running], before, pending_cells, map(self._row, received.values()))
        cut = leases.renew(self._tracker.store, self._worker_id, report, self._tracker.settings.lease)
        self._ran = {**running, **{name: ended[name] for name in before}}
        self._listed = listed
        self._due = now + renewal
        held = f"{len(running):,} run, {len(pending_cells):,} wait to be written, {len(received):,} are received"
        self._tell(cut, held)

    def _row(self, held: tuple[Any, Binding]) -> Received:
        request, binding = held
        requeues = policy.requeues(request.task, self._tracker.settings.on_lost)
        message = kept.of_message(request.message) if requeues else None
        return Received(binding.ref, binding.tag, binding.task_index, message, delivery_of(request.request_dict))

    def _tell(self, cut: list[str], held: str) -> None:
        """Log once that the record has no room for something, until it has again."""
        lacking = {"received" if kind == "received" else "cells" for kind in cut}
        for kind in sorted(lacking - self._lacking):
            logger.warning(NO_ROOM[kind], held)
        self._lacking = lacking


def _name(request: Any, binding: Binding) -> tuple[str, Delivery]:
    return binding.celery_task_id, delivery_of(request.request_dict)


class _Trust:
    """Whether a lease that has run out says that its worker is dead, and not that nobody could renew.

    After the store has failed, or taken long, it says nothing for one lease: the others could not renew theirs either.
    Who has just started, or stood still with its machine, cannot know and waits for two renewals.
    """

    def __init__(self, lease: float, interval: float) -> None:
        self._lease = lease
        self._long = lease / leases.RENEWALS / 2
        self._stood_still = lease + interval
        self._asked = time.time()
        self._since = self._two_renewals_from_now()

    def holds(self) -> bool:
        """Whether it does now; asked at each turn."""
        if time.time() - self._asked > self._stood_still:
            self._since = max(self._since, self._two_renewals_from_now())
        self._asked = time.time()
        return time.monotonic() >= self._since

    def heed(self, seconds: float) -> None:
        """Note how long the store took to answer."""
        if seconds > self._long:
            self.lose()

    def lose(self) -> None:
        """Note that the store has failed."""
        self._since = time.monotonic() + self._lease

    def _two_renewals_from_now(self) -> float:
        return time.monotonic() + 2 * self._lease / leases.RENEWALS


def keep_sweeping(tracker: Tracker, holder: str) -> Periodic:
    """Start sweeping whenever it is this holder's turn."""
    interval = tracker.settings.sweep_interval
    trust = _Trust(tracker.settings.lease, interval)

    def is_my_turn() -> bool:
        if trust.holds():
            return leases.take_turn(tracker.store, holder, interval)
        leases.try_a_write(tracker.store)  # the turn is for those who may use it
        return False

    def sweep_in_turn() -> None:
        try:
            began = time.monotonic()
            mine = is_my_turn()
            trust.heed(time.monotonic() - began)
            if mine and trust.holds():
                sweep(tracker)
        except StoreUnavailable:
            trust.lose()
            raise

    return Periodic("sweep", sweep_in_turn, lambda: interval * random.uniform(*JITTER)).start()
