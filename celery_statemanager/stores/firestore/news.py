"""Changes on their way to a watch, and which of them it has had. Pure."""

from __future__ import annotations

from typing import Any

from google.protobuf import timestamp_pb2

from celery_statemanager.stores.firestore.database import Found, nanoseconds

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
