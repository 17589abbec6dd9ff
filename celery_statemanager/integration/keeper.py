"""The threads that keep a worker's lease and sweep: no event loop or pool can hold them up."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from celery_statemanager import leases
from celery_statemanager.errors import StoreUnavailable
from celery_statemanager.integration import kept, pending, worker_requests
from celery_statemanager.integration.background import backlog
from celery_statemanager.integration.binding import delivery_of
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.integration.sweeper import sweep
from celery_statemanager.leases import Received, Report, cell_name

logger = logging.getLogger(__name__)

JITTER = (0.6, 1.0)

AFTER_FAILURE = 2.0
"""Seconds until the next try of what has failed, if it would not come sooner."""


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
        except StoreUnavailable as error:
            logger.warning("%s failed; the next time may do: %s", self._name, error)
        except Exception:
            logger.warning("%s failed; the next time may do", self._name, exc_info=True)
        else:
            return True
        return False


class Lease:
    """One worker's record, renewed with what it does at that moment."""

    def __init__(self, tracker: Tracker, worker_id: str) -> None:
        self._tracker = tracker
        self._worker_id = worker_id
        self._unsaid: set[str] = set()
        """What ran since the last renewal that was taken, and at it."""

    def keep(self) -> Periodic:
        """Start renewing it; stopping gives it back."""
        pause = self._tracker.settings.lease / leases.RENEWALS
        give_back = lambda: self._tracker.store.drop_worker(self._worker_id)  # noqa: E731 - shorter than its name
        return Periodic("lease", self.renew, lambda: pause, give_back).start()

    def renew(self) -> None:
        """Write the record once. Raises: StoreError."""
        running = [cell_name(each.ref, each.tag, each.task_index) for each in worker_requests.running()]
        before = self._unsaid.difference(running)
        self._unsaid.update(running)
        report = Report(running, sorted(before), [*backlog.cells(), *pending.told()], self._received())
        leases.renew(self._tracker.store, self._worker_id, report, self._tracker.settings.lease)
        self._unsaid = set(running)

    def _received(self) -> list[Received]:
        policy = self._tracker.settings.on_lost
        return [
            Received(
                binding.ref,
                binding.tag,
                binding.task_index,
                kept.of_message(request.message) if kept.requeues(request.task, policy) else None,
                delivery_of(request.request_dict),
            )
            for request, binding in worker_requests.received()
        ]


class _Trust:
    """Whether a lease that has run out says that its worker is dead, and not that nobody could renew.

    After the store has failed it says nothing for one lease: the others could not renew theirs either. Who has just
    started, or stood still with its machine, cannot know and waits for two renewals.
    """

    def __init__(self, lease: float, interval: float) -> None:
        self._lease = lease
        self._stood_still = lease + interval
        self._asked = time.time()
        self._since = self._two_renewals_from_now()

    def holds(self) -> bool:
        """Whether it does now; asked at each turn."""
        if time.time() - self._asked > self._stood_still:
            self._since = self._two_renewals_from_now()
        self._asked = time.time()
        return time.monotonic() >= self._since

    def lose(self) -> None:
        """Note that the store has failed."""
        self._since = time.monotonic() + self._lease

    def _two_renewals_from_now(self) -> float:
        return time.monotonic() + 2 * self._lease / leases.RENEWALS


def keep_sweeping(tracker: Tracker, holder: str) -> Periodic:
    """Start sweeping whenever it is this holder's turn."""
    interval = tracker.settings.sweep_interval
    trust = _Trust(tracker.settings.lease, interval)

    def sweep_in_turn() -> None:
        trusted = trust.holds()
        try:
            if leases.take_turn(tracker.store, holder, interval) and trusted:
                sweep(tracker)
        except StoreUnavailable:
            trust.lose()
            raise

    return Periodic("sweep", sweep_in_turn, lambda: interval * random.uniform(*JITTER)).start()
