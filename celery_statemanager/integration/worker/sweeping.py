"""Whose turn it is to sweep, and whether leases that have run out can be believed."""

from __future__ import annotations

import logging
import math
import random
import time
from functools import lru_cache, partial

from celery_statemanager import leases
from celery_statemanager.errors import StoreUnavailable
from celery_statemanager.integration import redelivery
from celery_statemanager.integration.callbacks import publish_decided
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.integration.worker.periodic import Periodic
from celery_statemanager.records import JobRef
from celery_statemanager.sweep import Sweep, SweepReport

JITTER = (0.6, 1.0)


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

    def observe(self, seconds: float) -> None:
        """Note how long the store took to answer."""
        if seconds > self._long:
            self.lose()

    def lose(self) -> None:
        """Note that the store has failed."""
        self._since = time.monotonic() + self._lease

    def _two_renewals_from_now(self) -> float:
        return time.monotonic() + 2 * self._lease / leases.RENEWALS


class _Sweeping:
    """Sweeps when it is this holder's turn; between two turns it sees whether others can renew their leases."""

    def __init__(self, tracker: Tracker, holder: str) -> None:
        self._tracker = tracker
        self._holder = holder
        self._interval = tracker.settings.sweep_interval
        self._looks = min(self._interval, tracker.settings.lease / 2)
        self._trust = _Trust(tracker.settings.lease, self._looks)
        self._due = -math.inf

    def pause(self) -> float:
        """Give the seconds until the next look."""
        return self._looks * random.uniform(*JITTER)

    def look(self) -> None:
        """Sweep, if it may. Raises: StoreError."""
        try:
            began = time.monotonic()
            mine = self._takes_turn(began)
            self._trust.observe(time.monotonic() - began)
            if mine and self._trust.holds():
                sweep(self._tracker)
        except StoreUnavailable:
            self._trust.lose()
            raise

    def _takes_turn(self, now: float) -> bool:
        if now >= self._due and self._trust.holds():
            mine = leases.try_acquire(self._tracker.store, self._holder, self._interval)
            self._due = now + self._interval * JITTER[0]
            return mine
        leases.try_a_write(self._tracker.store)  # the turn is for those who may use it
        return False


def keep_sweeping(tracker: Tracker, holder: str) -> Periodic:
    """Start sweeping whenever it is this holder's turn."""
    sweeping = _Sweeping(tracker, holder)
    return Periodic("sweep", sweeping.look, sweeping.pause).start()


logger = logging.getLogger(__name__)


class _AppActions:
    """Send what a sweep found due through the app of the tracker."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def resend(self, ref: JobRef, message: str) -> bool:
        ours = self._is_ours(ref, redelivery.task_of(message))
        if ours:
            redelivery.resend(self._tracker.app, message)
        return ours

    def publish(self, ref: JobRef, decided: tuple[str, ...]) -> int:
        return publish_decided(self._tracker, ref, decided, partial(self._is_ours, ref))

    def _is_ours(self, ref: JobRef, task: str) -> bool:
        """Whether this app has the task: another's message would end in a queue that nobody reads."""
        ours = task in self._tracker.app.tasks
        if not ours:
            _tell_once(self._tracker.app.main, ref, task)
        return ours


@lru_cache(maxsize=10_000)
def _tell_once(app: str | None, ref: JobRef, task: str) -> None:
    logger.warning(
        "sweep: app %r has no task %r and leaves the messages of job %r to the app that has it; if none with this "
        "store does, add the task's module to `include`, or give each app a statemanager_store_url of its own",
        app,
        task,
        ref.key.job_id,
        extra={"job_id": ref.key.job_id},
    )


def sweep(tracker: Tracker) -> SweepReport:
    """Look once for what died without a word, and mend it. Raises: StoreError."""
    settings = tracker.settings
    began = time.perf_counter()
    swept = Sweep(tracker.store, _AppActions(tracker), lease=settings.lease, max_lost=settings.max_lost).run()
    tracker.metrics.swept(time.perf_counter() - began)
    if swept:
        logger.info("swept: %s", swept)
    return swept
