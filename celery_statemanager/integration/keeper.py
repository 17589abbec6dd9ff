"""The threads of a worker's main process that keep its lease and sweep: no event loop or pool can hold them up."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable

from celery_statemanager import leases
from celery_statemanager.integration import kept, worker_requests
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.integration.sweeper import sweep
from celery_statemanager.leases import Received, Report, cell_name

logger = logging.getLogger(__name__)


class Keeper:
    """Renews one worker's record, and sweeps when it is this worker's turn, until stopped."""

    def __init__(self, tracker: Tracker, worker_id: str) -> None:
        self._tracker = tracker
        self._worker_id = worker_id
        self._stopped = threading.Event()
        self._previous: list[str] = []
        self._threads = [
            threading.Thread(target=self._keep_lease, name="statemanager-lease", daemon=True),
            threading.Thread(target=self._keep_sweeping, name="statemanager-sweep", daemon=True),
        ]

    def start(self) -> None:
        """Start both threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop both threads and give the lease back."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(timeout=5.0)

    def _keep_lease(self) -> None:
        lease = self._tracker.settings.lease
        while True:
            _tried(
                lambda: leases.renew(self._tracker.store, self._worker_id, self._report(), lease), "lease not renewed"
            )
            if self._stopped.wait(lease / leases.RENEWALS):
                break
        _tried(lambda: self._tracker.store.drop_worker(self._worker_id), "lease not given back")

    def _keep_sweeping(self) -> None:
        interval = self._tracker.settings.sweep_interval
        while not self._stopped.wait(interval * random.uniform(0.8, 1.2)):
            _tried(self._sweep_in_turn, "not swept")

    def _sweep_in_turn(self) -> None:
        tracker = self._tracker
        if leases.take_turn(tracker.store, self._worker_id, 2 * tracker.settings.sweep_interval):
            sweep(tracker)

    def _report(self) -> Report:
        running = [cell_name(each.ref, each.tag, each.task_index) for each in worker_requests.running()]
        previous, self._previous = self._previous, running
        return Report(running, previous, (), self._received())

    def _received(self) -> list[Received]:
        policy = self._tracker.settings.on_lost
        return [
            Received(
                binding.ref,
                binding.tag,
                binding.task_index,
                kept.of_message(request.message) if kept.requeues(request.task, policy) else None,
            )
            for request, binding in worker_requests.received()
        ]


def _tried(action: Callable[[], None], complaint: str) -> None:
    try:
        action()
    except Exception:
        logger.warning(complaint, exc_info=True)
