"""The messages that may be lost. They are stored between two sweeps, which different processes may make."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from celery_statemanager.codec import compact
from celery_statemanager.indexset import IndexSet
from celery_statemanager.records import JobRef

RECORD = "~queues"
"""The worker id of the record in which sweeps note the suspects."""


class Stage(NamedTuple):
    """A tag of one incarnation of a job, or one of its callbacks. The only row of a callback is 0 here."""

    incarnation: str
    tag: str
    is_callback: bool = False


class Lost(NamedTuple):
    """Rows of a stage whose messages are lost.

    Attributes:
        since: the time at which a sweep found first that they are in no queue. A cell that was written since may have
            another message.
    """

    ref: JobRef
    tag: str
    rows: Iterable[int]
    queue: str
    since: int


@dataclass
class Suspects:
    """The messages that may be lost, as of one moment.

    Attributes:
        since: when the suspects of a queue were noted, in microseconds, by the name of the queue.
        rows: the suspects of each stage, by the name of their queue.
    """

    since: dict[str, int] = field(default_factory=dict)
    rows: dict[str, dict[Stage, IndexSet]] = field(default_factory=dict)

    def add(self, queue: str, stage: Stage, rows: IndexSet) -> None:
        """Add rows of a stage."""
        found = self.rows.setdefault(queue, {})
        found[stage] = found.get(stage, IndexSet()).union(rows)

    def has_any(self, incarnation: str) -> bool:
        """Return whether a message of a job is suspect."""
        return any(stage.incarnation == incarnation for found in self.rows.values() for stage in found)

    def rows_of(self, stage: Stage) -> IndexSet:
        """Return the suspects of a stage in all queues."""
        return IndexSet().union(*(found[stage] for found in self.rows.values() if stage in found))

    def to_json(self) -> str:
        """Return the body of the record."""
        rows = [[queue, *stage, str(each)] for queue, found in self.rows.items() for stage, each in found.items()]
        return compact({"since": self.since, "rows": rows})

    @classmethod
    def from_json(cls, text: str) -> Suspects:
        """Read the body of the record."""
        body = json.loads(text)
        suspects = cls(body["since"])
        for queue, *stage, rows in body["rows"]:
            suspects.rows.setdefault(queue, {})[Stage(*stage)] = IndexSet.parse(rows)
        return suspects


class PutOff:
    """Times before which something is not looked at again. Those of the last 10,000 are remembered."""

    def __init__(self, most: int = 10_000) -> None:
        self._most = most
        self._until: dict[Hashable, int] = {}

    def until(self, name: Hashable) -> int:
        """Return the time before which something is not looked at again; 0 if it may be."""
        return self._until.get(name, 0)

    def put(self, name: Hashable, until: int) -> None:
        """Put something off until a time. Several threads may do so."""
        while len(self._until) >= self._most:
            self._until.pop(next(iter([*self._until])), None)
        self._until[name] = until
