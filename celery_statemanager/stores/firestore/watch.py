"""Live changes of a job: what its stream brought, the newest version of each cell, until it is read."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any
from weakref import WeakMethod

from celery_statemanager import aggregate
from celery_statemanager.errors import JobNotFound, StoreError
from celery_statemanager.models import Scope, State
from celery_statemanager.records import Batch, JobRef
from celery_statemanager.stores.base import Watch
from celery_statemanager.stores.firestore.database import Database, Found, nanoseconds
from celery_statemanager.stores.firestore.documents import KnownJob
from celery_statemanager.stores.firestore.errors import Deadline
from celery_statemanager.stores.firestore.jobs import Jobs
from celery_statemanager.stores.firestore.listing import place_in
from celery_statemanager.stores.firestore.poll import Poll, Target
from celery_statemanager.stores.firestore.stream import Snapshot, Stream

CATCH_UP = 0.1
"""Seconds that a read with news waits for the stream to show what this process itself has committed before."""
SETTLED = 50_000_000
"""Nanoseconds; a moment that is complete for so long shows that what was committed before is not of this scope."""
LOOK_FOR = 2.0
"""Seconds in which a job must be read after its stream broke; else the reader is told."""


class FirestoreWatch(Watch):
    """Reads one stream of Firestore's, or polls; after a fork, the child's first read opens its own.

    The thread of the stream does not keep the watch alive: one that is forgotten ends its stream.
    """

    def __init__(self, database: Database, jobs: Jobs, ref: JobRef, scope: Scope) -> None:
        self._database = database
        self._jobs = jobs
        self._ref = ref
        self._scope = scope
        self._target = Target(database, ref, scope)
        self._states: dict[tuple[str, int], tuple[int, State]] = {}
        self._job_changed = self._resync = self._gone = self._closed = False
        self._trouble: StoreError | None = None
        got = database.get([self._target.job], database.deadline())
        known = jobs.checked(ref, jobs.read(ref.key, got.documents.get(self._target.job)))
        self._job = known.job
        self._since = got.at
        self._complete = 0
        self._open()

    def read(self, timeout: float) -> Batch:
        deadline = time.monotonic() + timeout
        if self._pid != os.getpid() and not self._closed:
            self._open()
        with self._lock:
            while not self._ready():
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(min(left, self._database.timings.stream_check))
                self._source.watch_over()
            self._catch_up(deadline)
            return self._taken()

    def close(self) -> None:
        self._closed = True
        if self._pid == os.getpid():
            self._source.close()
            with self._lock:
                self._changed.notify_all()

    def __del__(self) -> None:
        if hasattr(self, "_source"):
            self.close()

    def _open(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)  # never entered: a signal may strike its exit, which is Python
        connection, timings = self._database.connection, self._database.timings
        take, lose, check = _weakly(self._take), _weakly(self._lose), _weakly(self._check)
        if connection.streams:
            made = Stream(connection, self._target.requests, self._since, take, lose, check, timings)
            self._source: Stream | Poll = made
        else:
            self._source = Poll(self._target, self._since, take, lose, timings)

    def _ready(self) -> bool:
        news = self._states or self._job_changed or self._resync
        return bool(news or self._gone or self._closed or self._trouble)

    def _catch_up(self, deadline: float) -> None:
        """Wait a moment for what this process wrote itself: a slow reader gets its newest version, not each."""
        committed = self._database.committed
        enough = min(deadline, time.monotonic() + CATCH_UP)
        while self._states and not self._closed:
            delivered = max(written for written, _ in self._states.values())
            if delivered >= committed or self._complete > committed + SETTLED:
                return
            left = enough - time.monotonic()
            if left <= 0 or self._trouble or self._gone:
                return
            self._changed.wait(left)

    def _taken(self) -> Batch:
        if self._gone:
            raise JobNotFound(*self._ref.key)
        ordered = sorted(self._states.values(), key=lambda pair: pair[0])
        batch = Batch([state for _, state in ordered], self._job_changed, self._resync)
        if self._trouble is not None and not self._closed and not self._ready_to_tell(batch):
            raise self._trouble
        self._states, self._job_changed, self._resync = {}, False, False
        return batch if not self._closed else Batch([])

    @staticmethod
    def _ready_to_tell(batch: Batch) -> bool:
        return bool(batch.states or batch.job_changed or batch.resync)

    def _take(self, snapshot: Snapshot, moment: Any) -> None:
        with self._lock:
            self._complete = nanoseconds(moment)
            self._resync = self._resync or snapshot.missed
            if self._target.job in snapshot.deleted:
                self._gone = True
            if self._target.job in snapshot.changed:
                self._take_job(snapshot.changed.pop(self._target.job))
            for document in snapshot.changed.values():
                self._take_cell(document)
            self._changed.notify_all()

    def _take_job(self, document: Found) -> None:
        try:
            known = self._jobs.read(self._ref.key, document)
            self._job = self._jobs.checked(self._ref, known).job
        except JobNotFound:
            self._gone = True
        self._job_changed = True

    def _take_cell(self, document: Found) -> None:
        cell = place_in(document, self._job)
        if cell is not None and self._scope.holds(*cell[:2]) and cell[1] >= 0:
            tag, row, kept = cell
            self._states[tag, row] = nanoseconds(document.stamp), aggregate.visible_state(self._job, tag, row, kept)

    def _lose(self, error: StoreError) -> None:
        with self._lock:
            self._trouble = error
            self._changed.notify_all()

    def _check(self) -> None:
        """See after a broken stream whether the job is still there: a stream since a moment may not tell."""
        try:
            known: KnownJob = self._jobs.current(self._ref, Deadline(min(self._database.connection.timeout, LOOK_FOR)))
        except JobNotFound:
            with self._lock:
                self._gone = True
                self._changed.notify_all()
            return
        with self._lock:
            self._job_changed = self._job_changed or known.job != self._job
            self._job = known.job
            self._changed.notify_all()


def _weakly(method: Callable[..., None]) -> Callable[..., None]:
    """Give what calls a method for as long as its object lives."""
    found = WeakMethod(method)

    def call(*args: Any) -> None:
        alive = found()
        if alive is not None:
            alive(*args)

    return call
