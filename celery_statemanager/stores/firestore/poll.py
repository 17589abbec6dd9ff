"""Polling for the changes of a job where no stream can be opened: over REST and behind some proxies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from celery_statemanager.errors import StoreError
from celery_statemanager.models import Scope
from celery_statemanager.records import JobRef
from celery_statemanager.stores.firestore import requests
from celery_statemanager.stores.firestore.database import Database, Document
from celery_statemanager.stores.firestore.listing import filters_of
from celery_statemanager.stores.firestore.stream import DocumentChanges, SeenVersions
from celery_statemanager.stores.firestore.timings import Timings


class WatchTarget:
    """The documents that a watch follows: the job and the cells of a scope."""

    def __init__(self, database: Database, ref: JobRef, scope: Scope) -> None:
        self.job = database.names.job(ref.key)
        self._database = database
        self._cell: list[str] = []
        self._filters: tuple[requests.Filter, ...] | None = None
        if scope.task_index is not None and scope.task_index < 0:
            return
        if scope.tag is not None and scope.task_index is not None:
            self._cell = [database.names.cell(ref, scope.tag, scope.task_index)]
        else:
            self._filters = filters_of(self.job, scope)

    def requests(self, since: Any) -> list[Any]:
        """Return the requests that open a stream of the changes since a time."""
        path, opening = self._database.path, []
        if self._filters is not None:
            query = requests.select("states", *self._filters)
            opening.append(requests.listen(path, 1, query_in=(self.job, query), names=(), since=since))
        names = [self.job, *self._cell]
        return [*opening, requests.listen(path, 2, query_in=None, names=names, since=since)]

    def documents(self) -> tuple[Iterator[Document], Any]:
        """Read all documents as of the same time. Return them and that time. Raises: StoreError."""
        batch = self._database.get([self.job, *self._cell], self._database.deadline())

        def documents() -> Iterator[Document]:
            yield from batch.documents.values()
            if self._filters is not None and self.job in batch.documents:
                yield from self._database.pages(self.job, "states", *self._filters, at=batch.read_time)

        return documents(), batch.read_time


class Poller:
    """Reads a target in its own thread until it is closed or a read fails.

    Args:
        since: only changes after this time are delivered.
        take: receives the changes of each read and its time, in the reading thread.
        lost: receives the error that ended the thread.
    """

    def __init__(
        self,
        target: WatchTarget,
        since: Any,
        take: Callable[[DocumentChanges, Any], None],
        lost: Callable[[StoreError], None],
        timings: Timings,
    ) -> None:
        self._timings = timings
        self._target = target
        self._seen = SeenVersions(since)
        self._take, self._lost = take, lost
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="firestore-poll", daemon=True).start()

    def close(self) -> None:
        """Stop polling without waiting for the thread."""
        self._closed.set()

    def check_silence(self) -> None:
        """Do nothing, because a read has a time limit, unlike a stream."""

    def _run(self) -> None:
        pause = self._timings.poll_every
        while not self._closed.wait(pause):
            try:
                pause = max(self._timings.poll_every, self._poll() / self._timings.polled_documents)
            except StoreError as error:
                self._lost(error)
                return

    def _poll(self) -> int:
        """Deliver the changes and return the number of documents read. Raises: StoreError."""
        documents, read_time = self._target.documents()
        changes, read, job_exists = DocumentChanges(), 0, False
        for document in documents:
            read += 1
            job_exists = job_exists or document.name == self._target.job
            if self._seen.is_new(document.name, document.update_time):
                changes.changed[document.name] = document
        if not job_exists:
            changes.deleted.add(self._target.job)
        self._take(changes, read_time)
        self._seen.complete(read_time)
        return read
