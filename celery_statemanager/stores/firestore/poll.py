"""Changes of a job by reading it again and again, where no stream can be had: over REST, behind some proxies."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from celery_statemanager.errors import StoreError
from celery_statemanager.stores.firestore.news import News, Snapshot
from celery_statemanager.stores.firestore.target import Target

EVERY = 1.0
"""Seconds between two looks, at least."""
DOCUMENTS_A_SECOND = 100.0
"""What polling may read: every look is billed for every cell of the scope, as no index tells what changed."""


class Poll:
    """Looks at a target until it is closed or a look fails.

    Args:
        since: the moment from which on changes are news.
        take: gets each snapshot and its moment, in the thread that looks.
        lost: is told at last that it ended, and why.
    """

    def __init__(
        self, target: Target, since: Any, take: Callable[[Snapshot, Any], None], lost: Callable[[StoreError], None]
    ) -> None:
        self._target = target
        self._news = News(since)
        self._take, self._lost = take, lost
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="firestore-poll", daemon=True).start()

    def close(self) -> None:
        """End it; returns at once."""
        self._closed.set()

    def watch_over(self) -> None:
        """Do nothing: unlike a stream, a look always ends."""

    def _run(self) -> None:
        pause = EVERY
        while not self._closed.wait(pause):
            try:
                pause = max(EVERY, self._look() / DOCUMENTS_A_SECOND)
            except StoreError as error:
                self._lost(error)
                return

    def _look(self) -> int:
        """Pass on what changed; give how many documents that took. Raises: StoreError."""
        documents, moment = self._target.documents()
        snapshot, looked_at, there = Snapshot(), 0, False
        for document in documents:
            looked_at += 1
            there = there or document.name == self._target.job
            if self._news.is_new(document.name, document.stamp):
                snapshot.changed[document.name] = document
        if not there:
            snapshot.deleted.add(self._target.job)
        self._take(snapshot, moment)
        self._news.complete(moment)
        return looked_at
