"""The messages that may be lost, and all that one sweep notes for the next one, which another process may make."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from celery_statemanager.codec import compact
from celery_statemanager.indexset import IndexSet
from celery_statemanager.overtaken import Order
from celery_statemanager.records import JobRef

RECORD = "~queues"
"""The worker id of the record with the notes of the last sweep."""


class Stage(NamedTuple):
    """A tag of one incarnation of a job, or one of its callbacks. The only row of a callback is 0 here."""

    incarnation: str
    tag: str
    is_callback: bool = False


class Lost(NamedTuple):
    """Rows of a stage whose messages are lost.

    Attributes:
        why: the reason why they are in no queue, as text.
        since: the time at which a sweep found first that they are in no queue. A cell that was written since may have
            another message.
    """

    ref: JobRef
    tag: str
    rows: Iterable[int]
    why: str
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

    def still_in(self, found: Suspects, queue: str) -> dict[Stage, IndexSet]:
        """Return the suspects of a queue that a later sweep has found too."""
        now = found.rows[queue]
        still = {stage: rows.within(now.get(stage, IndexSet())) for stage, rows in self.rows.get(queue, {}).items()}
        return {stage: rows for stage, rows in still.items() if rows}


@dataclass
class Notes:
    """What a sweep notes for the next one."""

    suspects: Suspects = field(default_factory=Suspects)
    order: Order = field(default_factory=Order)

    def to_json(self) -> str:
        """Return the body of the record."""
        queues = self.suspects.rows.items()
        rows = [[queue, *stage, str(each)] for queue, found in queues for stage, each in found.items()]
        return compact({"since": self.suspects.since, "rows": rows, "order": self.order.to_fields()})

    @classmethod
    def from_json(cls, text: str) -> Notes:
        """Read the body of the record."""
        body = json.loads(text)
        suspects = Suspects(body["since"])
        for queue, *stage, rows in body["rows"]:
            suspects.rows.setdefault(queue, {})[Stage(*stage)] = IndexSet.parse(rows)
        return cls(suspects, Order.from_fields(body["order"]) if "order" in body else Order())


class PutOff:
    """Times before which something is not looked at again. Those that were set last are remembered. Thread-safe."""

    def __init__(self, most: int = 10_000) -> None:
        self._most = most
        self._until: OrderedDict[Hashable, int] = OrderedDict()

    def until(self, name: Hashable) -> int:
        """Return the time before which something is not looked at again; 0 if it may be."""
        return self._until.get(name, 0)

    def put(self, name: Hashable, until: int) -> None:
        """Put something off until a time."""
        self._until.pop(name, None)
        self._until[name] = until
        while len(self._until) > self._most:
            self._until.popitem(last=False)
