"""A watch that survives lost connections."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from celery_statemanager.errors import StoreError, StoreUnavailable, SubscriptionLost
from celery_statemanager.models import Scope
from celery_statemanager.records import CALLBACK_ROW, Batch, JobRef
from celery_statemanager.stores.base import Store

logger = logging.getLogger("celery_statemanager.subscription")

NO_CELLS = Scope(task_index=CALLBACK_ROW)
"""A scope without cells, to watch the job record alone."""

FIRST_DELAY = 1.0
LONGEST_DELAY = 60.0
PATIENCE = 300.0
"""Seconds without a connection after which a subscription is lost."""


class Feed:
    """A watch that reconnects after a lost connection and then reports that changes may be missing.

    Args:
        clock: returns seconds of a monotonic clock; tests replace it.
        since: a cursor of a watch of this job. After a lost connection, this feed continues where it was.
    """

    def __init__(
        self,
        store: Store,
        ref: JobRef,
        scope: Scope,
        clock: Callable[[], float] = time.monotonic,
        since: str | None = None,
    ) -> None:
        self._store = store
        self._ref = ref
        self._scope = scope
        self._clock = clock
        self._closed = threading.Event()
        self._lost_at: float | None = None
        self._retry_at = 0.0
        self._delay = FIRST_DELAY
        self._continues = since is not None
        self._watch = store.watch(ref, scope, since)
        self._connected = True

    @property
    def connected(self) -> bool:
        """Whether the last read reached the store."""
        return self._connected

    @property
    def cursor(self) -> str:
        """The position up to which changes were returned."""
        return self._watch.cursor

    def read(self, timeout: float) -> Batch:
        """Wait for changes. Return an empty batch after ``timeout`` seconds or once closed.

        Raises: JobNotFound if the job was deleted; SubscriptionLost if the error is permanent or lasts five minutes.
        """
        try:
            if not self._connected:
                return self._reconnect(timeout)
            batch = self._watch.read(timeout)
            self._lost_at = None
            return batch
        except StoreUnavailable as error:
            self.mark_lost(error)
            return Batch([])
        except StoreError as error:
            raise SubscriptionLost(self._ref.key.job_id, str(error)) from error

    def close(self) -> None:
        """Close the watch. A ``read`` in progress returns."""
        self._closed.set()
        self._watch.close()

    def _reconnect(self, timeout: float) -> Batch:
        pause = max(self._retry_at - self._clock(), 0.0)
        if self._closed.wait(min(pause, timeout)) or timeout < pause:
            return Batch([])
        self._renew()
        if self._closed.is_set():  # another thread has closed the previous watch only
            self._watch.close()
        job_id = self._ref.key.job_id
        logger.info("subscription to job %r is reconnected", job_id, extra={"job_id": job_id})
        return Batch([], job_changed=True, resync=not self._continues)

    def renew(self) -> None:
        """Replace the watch by one that returns every earlier change with a timeout of 0. Raises: StoreError."""
        self._watch.close()
        self._renew()

    def _renew(self) -> None:
        self._watch = self._store.watch(self._ref, self._scope, self.cursor if self._continues else None)
        self._connected = True

    def mark_lost(self, error: StoreUnavailable) -> None:
        """Mark the connection as lost, so that later reads reconnect. Raises: SubscriptionLost after five minutes."""
        now = self._clock()
        if self._connected:
            self._connected = False
            self._watch.close()
        if self._lost_at is None:
            self._lost_at, self._delay = now, FIRST_DELAY
            job_id = self._ref.key.job_id
            message = "subscription to job %r lost its connection, will reconnect: %s"
            logger.warning(message, job_id, error, extra={"job_id": job_id})
        elif now - self._lost_at > PATIENCE:
            raise SubscriptionLost(self._ref.key.job_id, f"no connection for {PATIENCE:.0f} s: {error}") from error
        self._retry_at = now + self._delay * random.uniform(0.5, 1.0)
        self._delay = min(self._delay * 2, LONGEST_DELAY)
