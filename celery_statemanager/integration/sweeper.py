"""A sweep of an app's store, with the app's broker for hands."""

from __future__ import annotations

import logging
import time
from functools import lru_cache, partial

from celery_statemanager.integration import kept
from celery_statemanager.integration.callbacks import publish_decided
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.records import JobRef
from celery_statemanager.sweep import Sweep, Swept

logger = logging.getLogger(__name__)


class _Hands:
    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def resend(self, ref: JobRef, message: str) -> bool:
        ours = self._is_ours(ref, kept.task_of(message))
        if ours:
            kept.resend(self._tracker.app, message)
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


def sweep(tracker: Tracker) -> Swept:
    """Look once for what died without a word, and mend it. Raises: StoreError."""
    settings = tracker.settings
    began = time.perf_counter()
    swept = Sweep(tracker.store, _Hands(tracker), lease=settings.lease, max_lost=settings.max_lost).run()
    tracker.metrics.swept(time.perf_counter() - began)
    if swept:
        logger.info("swept: %s", swept)
    return swept
