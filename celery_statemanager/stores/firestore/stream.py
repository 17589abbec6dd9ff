"""One stream of Firestore's ``Listen`` call, read by its own thread and reopened when it breaks.

``Query.on_snapshot`` of the client library is not used; docs/internals/firestore.md gives the reasons. This stream
stores no documents. It stores the update times of recent changes, to recognise documents that the server resends.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from google.api_core import exceptions
from google.cloud.firestore_v1.types import firestore
from google.protobuf import timestamp_pb2

from celery_statemanager.errors import StoreError
from celery_statemanager.stores.firestore.client import Connection
from celery_statemanager.stores.firestore.database import Document, document_of, nanoseconds
from celery_statemanager.stores.firestore.errors import CLIENT_ERRORS, Transient, translated
from celery_statemanager.stores.firestore.timings import Timings

REOPEN_PAUSE = 0.2
"""Seconds between a broken stream and the next one, before jitter."""

MAX_DELAY = 30_000_000_000
"""Nanoseconds by which a change may arrive after a time that was reported complete, as it does with the emulator."""

_RESET, _REMOVED, _CURRENT, _NO_CHANGE = 4, 2, 3, 0
_types = firestore.TargetChange.TargetChangeType
assert (_types.RESET, _types.REMOVE, _types.CURRENT, _types.NO_CHANGE) == (_RESET, _REMOVED, _CURRENT, _NO_CHANGE)


class DocumentChanges:
    """The changes between two times.

    Attributes:
        changed: the written documents by name.
        deleted: the names of the deleted documents.
        missed: whether the server reported that changes are missing.
    """

    def __init__(self) -> None:
        self.changed: dict[str, Document] = {}
        self.deleted: set[str] = set()
        self.missed = False


class SeenVersions:
    """The versions of documents that have arrived.

    Attributes:
        since: the time from which a reopened stream must deliver changes.
    """

    def __init__(self, since: Any) -> None:
        self.since = since
        self._seen: dict[str, int] = {}

    def is_new(self, name: str, update_time: Any) -> bool:
        """Record a version of a document and return whether it arrives for the first time."""
        written = nanoseconds(update_time)
        if written <= max(nanoseconds(self.since), self._seen.get(name, 0)):
            return False
        self._seen[name] = written
        return True

    def complete(self, moment: Any) -> None:
        """Record that all changes up to a time have arrived, and drop old versions."""
        past = nanoseconds(moment) - MAX_DELAY
        if past - nanoseconds(self.since) > MAX_DELAY:
            self.since = timestamp_pb2.Timestamp(seconds=past // 10**9, nanos=past % 10**9 // 1_000 * 1_000)
            self._seen = {name: written for name, written in self._seen.items() if written > past}


class Stream:
    """Reads a stream until it is closed or cannot be reopened.

    Args:
        targets: returns the requests that open a stream of the changes since a time.
        since: the first such time.
        take: receives each set of changes and the time up to which it is complete, in the reading thread.
        lost: receives the error that ended the stream; a ``Transient`` after the second failure in a row.
        again: called before each reopening; may raise StoreError.
    """

    def __init__(
        self,
        connection: Connection,
        targets: Callable[[Any], list[Any]],
        since: Any,
        take: Callable[[DocumentChanges, Any], None],
        lost: Callable[[StoreError], None],
        again: Callable[[], None],
        timings: Timings,
    ) -> None:
        self._connection = connection
        self._timings = timings
        self._targets = targets
        self._seen, self._changes = SeenVersions(since), DocumentChanges()
        self._take, self._lost, self._again = take, lost, again
        self._closed = threading.Event()
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._call: Any = None
        self._alive_at, self._silence = time.monotonic(), timings.first_silence
        self._healthy = True
        self._thread = threading.Thread(target=self._run, name="firestore-listen", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the stream without waiting for the thread."""
        self._closed.set()
        self._cancel()

    def check_silence(self) -> None:
        """Cancel a stream that has been silent for too long. The reading thread then reopens it."""
        if time.monotonic() - self._alive_at > self._silence:
            self._alive_at = time.monotonic()
            self._cancel()

    def _cancel(self) -> None:
        self._requests.put(None)
        call = self._call
        if call is not None:
            call.cancel()

    def _run(self) -> None:
        while not self._closed.is_set():
            error = self._read_one()
            if self._closed.is_set():
                return
            if error is not None and not (isinstance(error, Transient) and self._healthy):
                self._connection.stream_failed()
                self._lost(error)
                return
            self._healthy = False
            self._closed.wait(REOPEN_PAUSE * random.uniform(0.5, 1.0))
            try:
                self._again()
            except StoreError as failure:
                self._lost(failure)
                return
            self._connection.stream_failed()

    def _read_one(self) -> StoreError | None:
        """Read one stream to its end and return the error that ended it; None if the server closed it normally."""
        self._requests = queue.SimpleQueue()
        self._alive_at, self._silence = time.monotonic(), self._timings.first_silence
        for request in self._targets(self._seen.since):
            self._requests.put(request)
        try:
            self._call = self._connection.listen(iter(self._requests.get, None))
            if self._closed.is_set():
                self._call.cancel()
            for changes, moment in self._read_changes(self._call):
                self._healthy = True
                self._take(changes, moment)
        except exceptions.MethodNotImplemented as error:  # by a proxy without streams: polling works
            return Transient(f"{self._connection.address} does not support streams: {error.message}")
        except CLIENT_ERRORS as error:
            return translated(error, self._connection.address)
        except StoreError as error:
            return error
        finally:
            self._requests.put(None)
        return None

    def _read_changes(self, responses: Any) -> Iterator[tuple[DocumentChanges, Any]]:
        current = False
        for response in responses:
            changes = self._changes  # may contain changes of a broken stream, which are not new in the next one
            self._alive_at = time.monotonic()
            self._connection.stream_works()
            kind = response.WhichOneof("response_type")
            if kind == "document_change":
                document = response.document_change.document
                if self._seen.is_new(document.name, document.update_time):
                    changes.changed[document.name] = document_of(document)
            elif kind in {"document_delete", "document_remove"}:
                changes.deleted.add(getattr(response, kind).document)
            elif kind == "filter":
                changes.missed = changes.missed or current
            elif kind == "target_change":
                change = response.target_change
                if change.target_change_type == _REMOVED:
                    raise StoreError(f"{self._connection.address} ended a listener: {change.cause.message}")
                current = current or change.target_change_type == _CURRENT
                complete = change.target_change_type == _NO_CHANGE and not change.target_ids
                if complete and change.HasField("read_time") and current:
                    self._changes, self._silence = DocumentChanges(), self._timings.silence
                    yield changes, change.read_time
                    self._seen.complete(change.read_time)
