"""Find published messages that no broker and no worker has any more (rule R19).

A message counts as lost if it had not begun when a sweep found its queue empty, and one lease later it still has not,
the queue was empty in every sweep since, and no live worker lists it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

from celery_statemanager.codec import compact
from celery_statemanager.indexset import IndexSet
from celery_statemanager.leases import RENEWALS, Report, cell_name, each_worker
from celery_statemanager.records import Column, JobRecord, JobRef, OutboxState, Place
from celery_statemanager.stores.capabilities import Outbox

RECORD = "~queues"
"""The worker id of the record in which sweeps note the suspects, so that another process may make the next sweep."""

MOST_ROWS = 10_000
"""Maximum number of rows of a job and of jobs that are suspects at a time. The others are looked at later."""

MOST_DELAYED = 10_000

_delayed: dict[tuple[str, str, int], int] = {}
"""The incarnation, tag and row of messages that this process found to be delayed, with the end of the delay.

Until then they are not looked at again.
"""


class Queues(Protocol):
    """The queues of the broker, as the app of a sweep sees them."""

    sends_ahead: bool
    """Whether the broker sends messages to a worker whose main loop does not read them. Such a worker lists none."""

    def queues_of(self, job: JobRecord) -> frozenset[str]:
        """Return the queues of some messages of a job. They should include all that its messages go to."""

    def place_of(self, job: JobRecord, tag: str, row: int) -> Place | None:
        """Return where a published message waits; None if that is unknown, as for one of another app."""

    def message_count(self, queue: str) -> int | None:
        """Return the number of messages in a queue, 0 if it does not exist; None if the broker does not know."""


class Lost(NamedTuple):
    """Rows of a stage whose messages are lost."""

    ref: JobRef
    tag: str
    rows: IndexSet
    queue: str


Stage = tuple[str, str]
"""The incarnation of a job, and a tag."""


@dataclass
class Suspects:
    """The messages that may be lost, as of one moment.

    Attributes:
        since: when a queue was found empty and its suspects were noted, in microseconds, by the name of the queue.
        rows: the suspects of each stage, by the name of their queue.
    """

    since: dict[str, int] = field(default_factory=dict)
    rows: dict[str, dict[Stage, IndexSet]] = field(default_factory=dict)

    def add(self, queue: str, stage: Stage, rows: IndexSet) -> None:
        """Add rows of a stage."""
        found = self.rows.setdefault(queue, {})
        found[stage] = found.get(stage, IndexSet()).union(rows)

    def to_json(self) -> str:
        """Return the body of the record."""
        rows = [[queue, *stage, str(each)] for queue, found in self.rows.items() for stage, each in found.items()]
        return compact({"since": self.since, "rows": rows})

    @classmethod
    def from_json(cls, text: str) -> Suspects:
        """Read the body of the record."""
        body = json.loads(text)
        suspects = cls(body["since"])
        for queue, incarnation, tag, rows in body["rows"]:
            suspects.rows.setdefault(queue, {})[incarnation, tag] = IndexSet.parse(rows)
        return suspects


class LostMessages:
    """Looks for lost messages in one sweep.

    Args:
        lease: in microseconds.
    """

    def __init__(self, store: Outbox, queues: Queues, lease: int, now: int) -> None:
        self._store = store
        self._queues = queues
        self._lease = lease
        self._now = now
        self._found = Suspects()
        self._refs: dict[str, JobRef] = {}
        self._counts: dict[str, int | None] = {}

    def look_at(self, job: JobRecord, outbox: OutboxState) -> None:
        """Note the rows of a job whose messages have not begun and are in no queue. Raises: JobNotFound, StoreError."""
        if outbox.claimed == 0 or not any(map(self._is_empty, self._queues.queues_of(job))):
            return
        current, columns = self._store.column_summaries(job.ref, indexes=True)
        self._refs[job.incarnation] = job.ref
        for tag, rows in unbegun(current, outbox, columns).items():
            found: defaultdict[str, list[int]] = defaultdict(list)
            for row in rows.head(MOST_ROWS):
                place = self._place_of(job, tag, row) if self._is_unlisted(job, tag, row) else None
                if place is not None and self._is_empty(place.queue):
                    found[place.queue].append(row)
            for queue, missing in found.items():
                self._found.add(queue, (job.incarnation, tag), IndexSet(missing))

    def finish(self) -> list[Lost]:
        """Return the messages that are lost, and note the suspects for the next sweep. Raises: StoreError."""
        record = self._store.get_worker(RECORD)
        if record is None and not self._found.rows:
            return []
        is_fresh = record is not None and self._now - record.renewed_at <= self._lease
        old = Suspects.from_json(record.body) if record is not None and is_fresh else Suspects()
        new, lost = Suspects(), []
        for queue, found in self._found.rows.items():
            since = old.since.get(queue, self._now)
            still = {
                stage: rows.within(found.get(stage, IndexSet())) for stage, rows in old.rows.get(queue, {}).items()
            }
            still = {stage: rows for stage, rows in still.items() if rows}
            if still and self._now - since >= self._lease:
                lost += [Lost(self._refs[stage[0]], stage[1], rows, queue) for stage, rows in still.items()]
                still = {}
            new.since[queue] = since if still else self._now
            new.rows[queue] = still or found
        self._store.put_worker(RECORD, new.to_json(), 0)
        return lost

    def _place_of(self, job: JobRecord, tag: str, row: int) -> Place | None:
        """Return where a message waits; None if that is unknown or if it is delayed."""
        cell = (job.incarnation, tag, row)
        if _delayed.get(cell, 0) > self._now:
            return None
        place = self._queues.place_of(job, tag, row)
        if place is None or place.delayed_until <= self._now:
            return place
        while len(_delayed) >= MOST_DELAYED:
            _delayed.pop(next(iter([*_delayed])), None)
        _delayed[cell] = place.delayed_until
        return None

    def _is_empty(self, queue: str) -> bool:
        if queue not in self._counts:
            self._counts[queue] = self._queues.message_count(queue)
        return self._counts[queue] == 0

    def _is_unlisted(self, job: JobRecord, tag: str, row: int) -> bool:
        """Return whether no live worker has a message; false if that is unknown."""
        listed = self._listed
        return listed is not None and cell_name(job.ref, tag, row) not in listed

    @cached_property
    def _listed(self) -> frozenset[str] | None:
        """The names of the cells that live workers list; None if a worker may hold others."""
        names: set[str] = set()
        for record in each_worker(self._store):
            if record.lease_until <= self._now:
                continue
            report = Report.from_record(record)
            is_blocked = report.in_main_loop or report.idle * 1_000_000 > self._lease / RENEWALS
            if report.cut or not report.readable or (is_blocked and self._queues.sends_ahead):
                return None
            names.update(report.cells)
            names.update(cell_name(row.ref, row.tag, row.task_index) for row in report.received)
        return frozenset(names)


def unbegun(job: JobRecord, outbox: OutboxState, columns: Iterable[Column]) -> dict[str, IndexSet]:
    """Return the rows whose next message was published and has not begun, by the tag of the message.

    Args:
        columns: those of the job, with index sets.
    """
    by_tag = {column.tag: column for column in columns}
    published = IndexSet(range(outbox.claimed)).without(outbox.returned.begun.union(outbox.returned.waiting))
    found: dict[str, IndexSet] = {}
    for stages, rows in job.plan.shapes if job.plan else ():
        left = rows.within(published)
        for tag in stages:
            column = by_tag.get(tag)
            if column is None:
                break
            missing = column.missing or IndexSet()
            found[tag] = found.get(tag, IndexSet()).union(left.within(missing))
            begun = (column.running, column.failed, column.not_run)
            left = left.without(missing.union(*(each for each in begun if each is not None)))
    return {tag: rows for tag, rows in found.items() if rows}
