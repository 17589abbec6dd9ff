"""A sweep of an app's store, with the app's broker for hands."""

from __future__ import annotations

import logging
import time

from celery_statemanager.integration import kept
from celery_statemanager.integration.callbacks import publish_decided
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.records import JobRef
from celery_statemanager.sweep import Sweep, Swept

logger = logging.getLogger(__name__)


class _Hands:
    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def resend(self, message: str) -> None:
        kept.resend(self._tracker.app, message)

    def publish(self, ref: JobRef, decided: tuple[str, ...]) -> None:
        publish_decided(self._tracker, ref, decided)


def sweep(tracker: Tracker) -> Swept:
    """Look once for what died without a word, and mend it. Raises: StoreError."""
    settings = tracker.settings
    began = time.perf_counter()
    swept = Sweep(tracker.store, _Hands(tracker), lease=settings.lease, max_lost=settings.max_lost).run()
    tracker.metrics.swept(time.perf_counter() - began)
    if swept:
        logger.info("swept: %s", swept)
    return swept
