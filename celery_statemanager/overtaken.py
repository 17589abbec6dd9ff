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


class Snapshot(NamedTuple):
    """The number of claimed rows of each job, as a sweep has read it.

    Attributes:
        since: a time before it was read. Rows that were claimed later were published after it.
        until: a time after it was read. Rows that were claimed earlier were published before it, or a moment later.
        claimed: by the incarnation of the job. Those that have rows to publish again are left out.
    """

    since: int
    until: int
    claimed: dict[str, int]


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
        return {"passed": self.passed, "snapshots": self.snapshots}

    @classmethod
    def from_fields(cls, values: dict[str, Any]) -> Order:
        """Read the object of ``to_fields``."""
        snapshots = [Snapshot(*each) for each in values["snapshots"]]
        return cls(values["passed"], snapshots)


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

    def add(self, job: JobRecord, outbox: OutboxState, unpublished: IndexSet, queues: frozenset[str]) -> bool:
        """Note how many rows of a job are claimed, for the next snapshot.

        Args:
            unpublished: claimed rows that may not be published.
            queues: those of the job.

        Returns: whether all claimed rows are published. If not, some will be published later than in the snapshots.
        """
        for queue in queues:
            self._passed.setdefault(queue, self._old.passed.get(queue, 0))
        if outbox.returned or unpublished:
            return False
        if len(self._claimed) < MOST_JOBS:
            self._claimed[job.incarnation] = outbox.claimed
        return True

    def published_after(self, job: JobRecord, row: int) -> int:
        """Return a time after which all messages of a row were published."""
        claimed = ((each.since, each.claimed.get(job.incarnation)) for each in self._old.snapshots)
        return max([job.created_at, *(since for since, count in claimed if count is not None and count <= row)])

    def is_news(self, queue: str, published_after: int) -> bool:
        """Return whether it is worth while to know that a message has begun that was published to a queue after a time.

        It is, if the messages that are known to have begun were published at least a lease earlier.
        """
        return published_after >= self._passed.get(queue, 0) + self._lease

    def has_begun(self, queue: str, published_after: int) -> None:
        """Record that a message has begun that was published to a queue after a time."""
        self._passed[queue] = max(self._passed.get(queue, 0), published_after)

    def claimed(self, job: JobRecord, queues: frozenset[str]) -> int:
        """Return a number of rows of a job of which the first messages have left one of some queues."""
        left = (each for each in self._old.snapshots if any(self.have_left(queue, each.until) for queue in queues))
        return max((each.claimed.get(job.incarnation, 0) for each in left), default=0)

    def published_by(self, job: JobRecord, row: int, after: int = 0) -> int | None:
        """Return a time by which the present message of a row was published; None if none is known.

        Args:
            after: a time after which the message was made due, or 0 for the first message of the row.
        """
        for each in self._old.snapshots:
            if each.since >= after and each.claimed.get(job.incarnation, 0) > row:
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
        kept = [
            each._replace(claimed={name: count for name, count in each.claimed.items() if name in self._claimed})
            for each in self._old.snapshots
        ]
        kept = [each for each in kept if each.claimed]
        if self._claimed and (not kept or self._now - kept[-1].since >= self._lease):
            kept.append(Snapshot(self._now, now, self._claimed))
        if len(kept) > MOST_SNAPSHOTS:
            del kept[1::2]
        return Order({queue: at for queue, at in self._passed.items() if at}, kept)
