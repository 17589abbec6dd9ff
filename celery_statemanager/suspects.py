"""The messages that may be lost, and all that one sweep notes for the next one, which another process may make."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from celery_statemanager.codec import compact
from celery_statemanager.errors import StoreContended, StoreError, StoreUnavailable
from celery_statemanager.indexset import IndexSet
from celery_statemanager.overtaken import Order
from celery_statemanager.records import JobRecord, JobRef
from celery_statemanager.stores.capabilities import WorkerRegistry

logger = logging.getLogger(__name__)

RECORD = "~queues"
"""The worker id of the record with the notes of the last sweep."""

MOST_TEXT = 256 * 1024
"""Maximum length of the suspects in the record. The others are noted when there is room."""


class Stage(NamedTuple):
    """A tag of one incarnation of a job, or one of its callbacks. The only row of a callback is 0 here."""

    incarnation: str
    tag: str
    is_callback: bool = False


class UnreadCell(NamedTuple):
    """A message that is suspect if its cell confirms that.

    Attributes:
        has_begun: whether a task of the row has begun the stage, so that the message is that of a retry.
        is_suspect: whether the last sweep has noted it.
    """

    job: JobRecord
    tag: str
    row: int
    has_begun: bool
    is_suspect: bool

    @property
    def message(self) -> tuple[JobRef, str, int]:
        """The cell of the message."""
        return self.job.ref, self.tag, self.row


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
    """What a sweep notes for the next one.

    Attributes:
        exists: whether the record exists, even if it is not used.
    """

    suspects: Suspects = field(default_factory=Suspects)
    order: Order = field(default_factory=Order)
    exists: bool = field(default=False, compare=False)

    @classmethod
    def read(cls, store: WorkerRegistry, lease: int, now: int) -> Notes:
        """Return the notes of the last sweep; empty ones if it was not within the last lease. Raises: StoreError.

        Those of a later time were written before the store's clock was set back.
        """
        record = store.get_worker(RECORD)
        is_recent = record is not None and now - lease <= record.renewed_at <= now
        return cls.from_json(record.body, exists=True) if record and is_recent else cls(exists=record is not None)

    def write(self, store: WorkerRegistry) -> None:
        """Write the record. An error is logged: without it, messages are found later. Raises: StoreUnavailable."""
        try:
            store.put_worker(RECORD, self.to_json(), 0)
        except StoreError as error:
            if isinstance(error, StoreUnavailable) and not isinstance(error, StoreContended):
                raise
            logger.warning("sweep: cannot write the notes about lost messages, they are found later: %s", error)

    def to_json(self) -> str:
        """Return the body of the record. It has room for a limited number of suspects."""
        room, rows = MOST_TEXT, []
        for queue, found in self.suspects.rows.items():
            for stage, missing in found.items():
                rows.append([queue, *stage, str(missing)])
                room -= len(compact(rows[-1]))
                if room < 0:
                    rows.pop()
                    break
        noted = {each[0] for each in rows}
        since = {queue: since for queue, since in self.suspects.since.items() if queue in noted}
        return compact({"since": since, "rows": rows, "order": self.order.to_fields()})

    @classmethod
    def from_json(cls, text: str, *, exists: bool = False) -> Notes:
        """Read the body of the record. Return empty notes if it cannot be read."""
        try:
            body = json.loads(text)
            suspects = Suspects({queue: int(since) for queue, since in body["since"].items()})
            for queue, incarnation, tag, is_callback, rows in body["rows"]:
                stage = Stage(incarnation, tag, bool(is_callback))
                suspects.rows.setdefault(queue, {})[stage] = IndexSet.parse(rows)
            return cls(suspects, Order.from_fields(body["order"]), exists)
        except (AttributeError, KeyError, TypeError, ValueError):
            return cls(exists=exists)


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
