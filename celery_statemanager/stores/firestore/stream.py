"""One stream of Firestore's Listen call, read by a thread of its own and opened anew when it breaks.

Not ``Query.on_snapshot``: it reconnects without a pause, dies silently of a filter mismatch, tells nobody that it is
disconnected and sorts all documents at each change (design.md). This one keeps no documents, only when those that
changed lately did: so it tells what the server sends again from news.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from google.cloud.firestore_v1.types import firestore
from google.protobuf import timestamp_pb2

from celery_statemanager.errors import StoreError
from celery_statemanager.stores.firestore.client import Connection
from celery_statemanager.stores.firestore.database import Found, found, nanoseconds
from celery_statemanager.stores.firestore.errors import FINAL, TRANSIENT, Transient, translated
from celery_statemanager.stores.firestore.timings import Timings

PAUSE = 0.2
_RESET, _REMOVED, _CURRENT, _NO_CHANGE = 4, 2, 3, 0
_types = firestore.TargetChange.TargetChangeType
assert (_types.RESET, _types.REMOVE, _types.CURRENT, _types.NO_CHANGE) == (_RESET, _REMOVED, _CURRENT, _NO_CHANGE)


class Stream:
    """Reads a stream until it is closed or cannot be healed.

    Args:
        targets: gives the requests that open it for what changed since a moment.
        since: that moment.
        take: gets each snapshot and its moment, in the reading thread.
        lost: is told at last that it ended, and why; a ``Transient`` after the second failure in a row.
        again: is called after it was opened anew; may raise StoreError.
    """

    def __init__(
        self,
        connection: Connection,
        targets: Callable[[Any], list[Any]],
        since: Any,
        take: Callable[[Snapshot, Any], None],
        lost: Callable[[StoreError], None],
        again: Callable[[], None],
        timings: Timings,
    ) -> None:
        self._connection = connection
        self._timings = timings
        self._targets = targets
        self._news, self._snapshot = News(since), Snapshot()
        self._take, self._lost, self._again = take, lost, again
        self._closed = threading.Event()
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._call: Any = None
        self._alive_at, self._silence = time.monotonic(), timings.first_silence
        self._healthy = True
        self._thread = threading.Thread(target=self._run, name="firestore-listen", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it; returns at once."""
        self._closed.set()
        self._hang_up()

    def watch_over(self) -> None:
        """Break a stream that has been silent for too long; it is then opened anew."""
        if time.monotonic() - self._alive_at > self._silence:
            self._alive_at = time.monotonic()
            self._hang_up()

    def _hang_up(self) -> None:
        self._requests.put(None)
        call = self._call
        if call is not None:
            call.cancel()

    def _run(self) -> None:
        while not self._closed.is_set():
            trouble = self._read_one()
            if self._closed.is_set():
                return
            if trouble is not None and not (isinstance(trouble, Transient) and self._healthy):
                self._connection.stream_failed()
                self._lost(trouble)
                return
            self._healthy = False
            self._closed.wait(PAUSE * random.uniform(0.5, 1.0))
            try:
                self._again()
            except StoreError as error:
                self._lost(error)
                return
            self._connection.stream_failed()

    def _read_one(self) -> StoreError | None:
        """Read one stream to its end; give what ended it, None if the server did without a word."""
        self._requests = queue.SimpleQueue()
        for request in self._targets(self._news.since):
            self._requests.put(request)
        try:
            self._call = self._connection.listen(iter(self._requests.get, None))
            if self._closed.is_set():
                self._call.cancel()
            for snapshot, moment in self._snapshots(self._call):
                self._healthy = True
                self._take(snapshot, moment)
        except (*TRANSIENT, *FINAL) as error:
            return translated(error, self._connection.address)
        except StoreError as error:
            return error
        finally:
            self._requests.put(None)
        return None

    def _snapshots(self, responses: Any) -> Iterator[tuple[Snapshot, Any]]:
        current = False
        for response in responses:
            snapshot = self._snapshot  # what a stream that broke had brought of it is news no more in the next one
            self._alive_at, self._silence = time.monotonic(), self._timings.silence
            self._connection.stream_works()
            kind = response.WhichOneof("response_type")
            if kind == "document_change":
                document = response.document_change.document
                if self._news.is_new(document.name, document.update_time):
                    snapshot.changed[document.name] = found(document)
            elif kind in {"document_delete", "document_remove"}:
                snapshot.deleted.add(getattr(response, kind).document)
            elif kind == "filter":
                snapshot.missed = snapshot.missed or current
            elif kind == "target_change":
                change = response.target_change
                if change.target_change_type == _REMOVED:
                    raise StoreError(f"{self._connection.address} ended a listener: {change.cause.message}")
                current = current or change.target_change_type == _CURRENT
                complete = change.target_change_type == _NO_CHANGE and not change.target_ids
                if complete and change.HasField("read_time") and current:
                    self._snapshot = Snapshot()
                    yield snapshot, change.read_time
                    self._news.complete(change.read_time)


LATE = 30_000_000_000
"""Nanoseconds by which a change may come after a moment that was said to be complete: the emulator does so."""


class Snapshot:
    """What changed up to a moment: documents written since the one before, by name; names of deleted ones."""

    def __init__(self) -> None:
        self.changed: dict[str, Found] = {}
        self.deleted: set[str] = set()
        self.missed = False


class News:
    """Knows which changes have come.

    Attributes:
        since: the moment from which on a stream that is opened anew must tell.
    """

    def __init__(self, since: Any) -> None:
        self.since = since
        self._seen: dict[str, int] = {}

    def is_new(self, name: str, stamp: Any) -> bool:
        """Whether a document comes as it has not come before."""
        written = nanoseconds(stamp)
        if written <= max(nanoseconds(self.since), self._seen.get(name, 0)):
            return False
        self._seen[name] = written
        return True

    def complete(self, moment: Any) -> None:
        """Take note that all up to a moment has come, and forget what is long past."""
        past = nanoseconds(moment) - LATE
        if past - nanoseconds(self.since) > LATE:
            self.since = timestamp_pb2.Timestamp(seconds=past // 10**9, nanos=past % 10**9 // 1_000 * 1_000)
            self._seen = {name: written for name, written in self._seen.items() if written > past}
