"""Changes of a job by reading it again and again, where no stream can be had: over REST, behind some proxies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from celery_statemanager.errors import StoreError
from celery_statemanager.models import Scope
from celery_statemanager.records import JobRef
from celery_statemanager.stores.firestore import requests
from celery_statemanager.stores.firestore.database import Database, Found
from celery_statemanager.stores.firestore.listing import filters_of
from celery_statemanager.stores.firestore.stream import News, Snapshot
from celery_statemanager.stores.firestore.timings import Timings


class Poll:
    """Looks at a target until it is closed or a look fails.

    Args:
        since: the moment from which on changes are news.
        take: gets each snapshot and its moment, in the thread that looks.
        lost: is told at last that it ended, and why.
    """

    def __init__(
        self,
        target: Target,
        since: Any,
        take: Callable[[Snapshot, Any], None],
        lost: Callable[[StoreError], None],
        timings: Timings,
    ) -> None:
        self._timings = timings
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
        pause = self._timings.poll_every
        while not self._closed.wait(pause):
            try:
                pause = max(self._timings.poll_every, self._look() / self._timings.polled_documents)
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


class Target:
    """What a stream is asked for, or a poll reads."""

    def __init__(self, database: Database, ref: JobRef, scope: Scope) -> None:
        self.job = database.names.job(ref.key)
        self._database = database
        self._one: list[str] = []
        self._filters: tuple[requests.Filter, ...] | None = None
        if scope.task_index is not None and scope.task_index < 0:
            return
        if scope.tag is not None and scope.task_index is not None:
            self._one = [database.names.cell(ref, scope.tag, scope.task_index)]
        else:
            self._filters = filters_of(self.job, scope)

    def requests(self, since: Any) -> list[Any]:
        """Give the requests that open a stream of what changed since a moment."""
        path, made = self._database.path, []
        if self._filters is not None:
            query = requests.select("states", *self._filters)
            made.append(requests.listen(path, 1, query_in=(self.job, query), names=(), since=since))
        names = [self.job, *self._one]
        return [*made, requests.listen(path, 2, query_in=None, names=names, since=since)]

    def documents(self) -> tuple[Iterator[Found], Any]:
        """Read them all, as of one moment. Raises: StoreError."""
        got = self._database.get([self.job, *self._one], self._database.deadline())
        return self._found(got.documents, got.at), got.at

    def _found(self, documents: dict[str, Found], at: Any) -> Iterator[Found]:
        yield from documents.values()
        if self._filters is not None and self.job in documents:
            yield from self._database.pages(self.job, "states", *self._filters, at=at)
