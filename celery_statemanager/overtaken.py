"""Determine which messages have left their queue, because messages that were published later have begun (rule R19).

A queue keeps the order of its messages, except those that the broker has put back when the connection of a worker has
ended. Sweeps do not know when a message was published, but they note from time to time how many rows of each job have
been claimed: these rows were published earlier than all later ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from celery_statemanager.indexset import IndexSet
from celery_statemanager.records import JobRecord, OutboxState

GAP = 2
"""Leases by which a message must have been published later than another one that it proves to have left the queue."""

MOST_SNAPSHOTS = 8
"""Maximum number of snapshots. If there are more, every other one is dropped, so that the oldest are furthest apart."""

MOST_JOBS = 500
"""Maximum number of jobs in a snapshot. Messages of other jobs are not found in this way."""

MOST_QUEUES = 500
"""Maximum number of queues about which something is noted. The others are those with the earliest messages."""

MOST_TEXT = 100
"""Maximum length of the rows of a job, as text, that a snapshot leaves out. With more, it leaves out the job."""


class Snapshot(NamedTuple):
    """The number of claimed rows of each job, as a sweep has read it.

    Attributes:
        since: a time before it was read. Rows that were claimed later were published after it.
        until: a time after it was read. Rows that were claimed earlier were published before it, unless they are in
            ``unpublished``.
        claimed: by the incarnation of the job.
        unpublished: the claimed rows of a job whose publication then or later was not certain, if there are any.
    """

    since: int
    until: int
    claimed: dict[str, int]
    unpublished: dict[str, IndexSet]

    def without(self, unpublished: dict[str, IndexSet]) -> Snapshot:
        """Return what is left of it if rows of these jobs are not published, and all other jobs have ended."""
        rows = {name: each.union(self.unpublished.get(name, IndexSet())) for name, each in unpublished.items()}
        claimed = {
            name: count
            for name, count in self.claimed.items()
            if name in unpublished and len(str(rows[name])) <= MOST_TEXT
        }
        return self._replace(claimed=claimed, unpublished={name: rows[name] for name in claimed if rows[name]})

    def published(self, incarnation: str, row: int) -> bool:
        """Return whether a row of a job had been published."""
        return self.claimed.get(incarnation, 0) > row and row not in self.unpublished.get(incarnation, ())


@dataclass
class Order:
    """What the sweeps have found out about the order of messages.

    Attributes:
        passed: by the name of a queue, a time. A message that was published to the queue after it has begun.
        snapshots: the oldest first.
    """

    passed: dict[str, int] = field(default_factory=dict)
    snapshots: list[Snapshot] = field(default_factory=list)

    def to_fields(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        snapshots = [
            [each.since, each.until, each.claimed, {name: str(rows) for name, rows in each.unpublished.items()}]
            for each in self.snapshots
        ]
        return {"passed": self.passed, "snapshots": snapshots}

    @classmethod
    def from_fields(cls, values: dict[str, Any]) -> Order:
        """Read the object of ``to_fields``. Raises: AttributeError, KeyError, TypeError, ValueError."""
        snapshots = [
            Snapshot(
                int(since),
                int(until),
                {name: int(count) for name, count in claimed.items()},
                {name: IndexSet.parse(rows) for name, rows in unpublished.items()},
            )
            for since, until, claimed, unpublished in values["snapshots"]
        ]
        return cls({queue: int(at) for queue, at in values["passed"].items()}, snapshots)


class Overtaken:
    """The order of messages in one sweep. What the sweep itself finds out is used by the next one.

    Args:
        old: what earlier sweeps have found out.
        lease, now: in microseconds.
        put_back_by: a time by which the broker has put back the messages of all workers whose connections have ended.
            They are at the head of their queues, from which later messages had been taken before.
    """

    def __init__(self, old: Order, lease: int, now: int, put_back_by: int) -> None:
        self._old = old
        self._gap = GAP * lease
        self._lease = lease
        self._now = now
        self._put_back_by = put_back_by
        self._passed: dict[str, int] = {}
        self._claimed: dict[str, int] = {}
        self._unpublished: dict[str, IndexSet] = {}

    def add(self, job: JobRecord, outbox: OutboxState, unpublished: IndexSet, queues: frozenset[str]) -> None:
        """Note which rows of a job are published, for the next snapshot.

        A claim with a lease lasts until its rows are published. Any other one lasts longer: it counts as published
        when it is old.

        Args:
            unpublished: claimed rows whose publisher has died and may not have published them.
            queues: those of the job.
        """
        for queue in queues:
            self._passed.setdefault(queue, self._old.passed.get(queue, 0))
        claims = outbox.claims.values()
        being_published = [each.rows for each in claims if each.until != each.at or each.at > self._now - self._gap]
        rows = unpublished.union(outbox.returned.begun, outbox.returned.waiting, *being_published)
        if len(self._claimed) < MOST_JOBS:
            self._claimed[job.incarnation], self._unpublished[job.incarnation] = outbox.claimed, rows

    def published_after(self, job: JobRecord, row: int) -> int:
        """Return a time after which all messages of a row were published."""
        claimed = ((each.since, each.claimed.get(job.incarnation)) for each in self._old.snapshots)
        return max([job.created_at, *(since for since, count in claimed if count is not None and count <= row)])

    def is_news(self, queue: str, published_after: int) -> bool:
        """Return whether it is worth while to know that a message has begun that was published to a queue after a time.

        It is, if the messages that are known to have begun were published at least a lease earlier.
        """
        return published_after >= self._passed.get(queue, 0) + self._lease

    def note_begun(self, queue: str, published_after: int) -> None:
        """Note that a message has begun that was published to a queue after a time."""
        self._passed[queue] = max(self._passed.get(queue, 0), published_after)

    def overtaken_rows(self, job: JobRecord, queues: frozenset[str]) -> int:
        """Return the number of rows of a job that were claimed when all messages had been published that have left.

        Args:
            queues: those of the job. The messages have left one of them.
        """
        left = (each for each in self._old.snapshots if any(self.have_left(queue, each.until) for queue in queues))
        return max((each.claimed.get(job.incarnation, 0) for each in left), default=0)

    def published_by(self, job: JobRecord, row: int, after: int = 0) -> int | None:
        """Return a time by which the present message of a row was published; None if none is known.

        Args:
            after: a time after which the message was made due, or 0 for the first message of the row.
        """
        for each in self._old.snapshots:
            if each.since >= after and each.published(job.incarnation, row):
                return each.until
        return None

    def have_left(self, queue: str, published_by: int | None) -> bool:
        """Return whether all messages that were published to a queue by a time have left it."""
        if published_by is None:
            return False
        return self._old.passed.get(queue, 0) >= max(published_by + self._gap, self._put_back_by)

    def next(self, now: int) -> Order:
        """Return what the next sweep knows of the order.

        Args:
            now: a time at the end of this sweep.
        """
        kept = [each.without(self._unpublished) for each in self._old.snapshots]
        kept = [each for each in kept if each.claimed]
        if not kept or self._now - kept[-1].since >= self._lease:
            new = Snapshot(self._now, now, self._claimed, {}).without(self._unpublished)
            kept += [new] if new.claimed else []
        if len(kept) > MOST_SNAPSHOTS:
            del kept[1::2]
        latest = sorted((at, queue) for queue, at in self._passed.items() if at)[-MOST_QUEUES:]
        return Order({queue: at for at, queue in latest}, kept)
