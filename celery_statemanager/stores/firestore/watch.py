"""Live changes of a job: the newest version of each changed cell, collected from a stream until it is read."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any
from weakref import WeakMethod

from google.protobuf import timestamp_pb2

from celery_statemanager import aggregate
from celery_statemanager.errors import JobNotFound, StoreError, StoreUnavailable
from celery_statemanager.limits import parse_position
from celery_statemanager.models import Scope, State
from celery_statemanager.records import Batch, JobRef
from celery_statemanager.stores.base import Watch
from celery_statemanager.stores.firestore.database import Database, Document, nanoseconds
from celery_statemanager.stores.firestore.errors import CallDeadline
from celery_statemanager.stores.firestore.jobs import JobDocuments
from celery_statemanager.stores.firestore.listing import keyed_cell
from celery_statemanager.stores.firestore.poll import Poller, WatchTarget
from celery_statemanager.stores.firestore.stream import DocumentChanges, Stream

CATCH_UP = 0.1
"""Seconds that a read with changes waits for the stream to deliver this process's own earlier commits."""

COMPLETE_AFTER = 50_000_000
"""Nanoseconds. A stream that is complete for this long after a commit will not deliver it: it is out of scope."""

MAX_STREAMED_AGE = 1_200 * 1_000_000_000
"""Nanoseconds. Earlier changes are not requested from a stream, because Firestore remembers them for half an hour."""

CHECK_TIMEOUT = 2.0
"""Seconds for reading the job after its stream broke. Without an answer, the reader gets an error."""


class FirestoreWatch(Watch):
    """Reads one stream of Firestore, or polls. After a fork, the child's first read opens its own stream.

    The thread of the stream holds only weak references to the watch, so a watch without references ends its stream.
    """

    def __init__(self, database: Database, jobs: JobDocuments, ref: JobRef, scope: Scope, since: str | None) -> None:
        position = None if since is None else parse_position(since, 2)
        self._database = database
        self._jobs = jobs
        self._ref = ref
        self._scope = scope
        self._target = WatchTarget(database, ref, scope)
        self._states: dict[tuple[str, int], tuple[int, State]] = {}
        self._job_changed = self._resync = self._gone = self._closed = False
        self._error: StoreError | None = None
        batch = database.get([self._target.job], database.deadline())
        current = jobs.checked(ref, jobs.decode(ref.key, batch.documents.get(self._target.job)))
        self._job = current.job
        self._since = batch.read_time
        self._position, self._complete = nanoseconds(batch.read_time), 0
        if position is not None:
            self._go_back(*position)
        self._open()
        if position is not None:
            self._wait_for_past(nanoseconds(batch.read_time))

    @property
    def cursor(self) -> str:
        return self._cursor_after(self._position)

    def read(self, timeout: float) -> Batch:
        deadline = time.monotonic() + timeout
        if self._pid != os.getpid() and not self._closed:
            self._open()
        with self._lock:
            while not (self._has_changes() or self._gone or self._closed or self._error):
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(min(left, self._database.timings.stream_check))
                self._source.check_silence()
            self._catch_up(deadline)
            return self._take_batch()

    def close(self) -> None:
        self._closed = True
        if self._pid == os.getpid():
            self._source.close()
            with self._lock:
                self._changed.notify_all()

    def __del__(self) -> None:
        if hasattr(self, "_source"):
            self.close()

    def _go_back(self, position: int, revision: int) -> None:
        """Continue after an earlier time. A stream delivers what is recent; older changes cost a read of all cells."""
        if position > self._position or revision > self._job.revision:
            self._job_changed = self._resync = True
        elif self._position - position <= MAX_STREAMED_AGE:
            self._position = position
            self._since = timestamp_pb2.Timestamp(seconds=position // 10**9, nanos=position % 10**9)
        else:
            documents, self._since = self._target.documents()
            for document in documents:
                if document.name != self._target.job and nanoseconds(document.update_time) > position:
                    self._take_cell(document)
            self._job_changed, self._position = True, position

    def _wait_for_past(self, moment: int) -> None:
        """Wait until the changes up to a time have arrived. Raises: JobNotFound, StoreError."""
        address, timeout = self._database.connection.address, self._database.connection.timeout
        end = time.monotonic() + timeout
        with self._lock:
            while self._complete < moment and not (self._gone or self._error):
                left = end - time.monotonic()
                if left <= 0:
                    self._error = StoreUnavailable(f"{address} did not deliver earlier changes within {timeout:g} s")
                    break
                self._changed.wait(min(left, self._database.timings.stream_check))
                self._source.check_silence()
        if self._error is not None:
            self.close()
            raise self._error

    def _cursor_after(self, moment: int) -> str:
        return f"{moment}-{self._job.revision}"

    def _open(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()
        # Callers enter the lock itself: a condition exits in Python code, which a signal handler may interrupt.
        self._changed = threading.Condition(self._lock)
        connection, timings = self._database.connection, self._database.timings
        take, lose, check = _weak(self._take), _weak(self._lose), _weak(self._check)
        self._source: Stream | Poller
        if connection.streams:
            self._source = Stream(connection, self._target.requests, self._since, take, lose, check, timings)
        else:
            self._source = Poller(self._target, self._since, take, lose, timings)

    def _has_changes(self) -> bool:
        return bool(self._states or self._job_changed or self._resync)

    def _catch_up(self, deadline: float) -> None:
        """Wait briefly for this process's own commits, so that a slow reader gets only their newest version."""
        committed = self._database.committed
        end = min(deadline, time.monotonic() + CATCH_UP)
        while self._states and not self._closed:
            delivered = max(written for written, _ in self._states.values())
            if delivered >= committed or self._complete > committed + COMPLETE_AFTER:
                return
            left = end - time.monotonic()
            if left <= 0 or self._error or self._gone:
                return
            self._changed.wait(left)

    def _take_batch(self) -> Batch:
        """Return the collected changes and clear them. Raises: JobNotFound; the stream's error after the changes."""
        if self._gone:
            raise JobNotFound(*self._ref.key)
        if self._error is not None and not self._closed and not self._has_changes():
            raise self._error
        ordered = sorted(self._states.values(), key=lambda pair: pair[0])
        cursors: list[str] = []
        for (moment, _), (following, _) in zip(ordered, [*ordered[1:], (0, None)]):
            if moment != following:  # a commit that changes several cells is passed with the last of them
                self._position = max(self._position, moment)
            cursors.append(self.cursor)
        batch = Batch([state for _, state in ordered], self._job_changed, self._resync, cursors)
        self._states, self._job_changed, self._resync = {}, False, False
        return batch if not self._closed else Batch([])

    def _take(self, changes: DocumentChanges, moment: Any) -> None:
        with self._lock:
            self._complete = nanoseconds(moment)
            self._resync = self._resync or changes.missed
            if self._target.job in changes.deleted:
                self._gone = True
            if self._target.job in changes.changed:
                self._take_job(changes.changed.pop(self._target.job))
            for document in changes.changed.values():
                self._take_cell(document)
            self._changed.notify_all()

    def _take_job(self, document: Document) -> None:
        try:
            current = self._jobs.decode(self._ref.key, document)
            self._job = self._jobs.checked(self._ref, current).job
        except JobNotFound:
            self._gone = True
        self._job_changed = True

    def _take_cell(self, document: Document) -> None:
        entry = keyed_cell(document, self._job)
        if entry is not None and self._scope.holds(*entry[:2]) and entry[1] >= 0:
            tag, row, _ = entry
            self._states[tag, row] = nanoseconds(document.update_time), aggregate.visible_state(self._job, *entry)

    def _lose(self, error: StoreError) -> None:
        with self._lock:
            self._error = error
            self._changed.notify_all()

    def _check(self) -> None:
        """Read the job after a broken stream, because the reopened stream may not report a deletion."""
        deadline = CallDeadline(min(self._database.connection.timeout, CHECK_TIMEOUT))
        try:
            current = self._jobs.current(self._ref, deadline)
        except JobNotFound:
            with self._lock:
                self._gone = True
                self._changed.notify_all()
            return
        with self._lock:
            self._job_changed = self._job_changed or current.job != self._job
            self._job = current.job
            self._changed.notify_all()


def _weak(method: Callable[..., None]) -> Callable[..., None]:
    """Return a function that calls the method as long as its object exists."""
    reference = WeakMethod(method)

    def call(*args: Any) -> None:
        alive = reference()
        if alive is not None:
            alive(*args)

    return call
