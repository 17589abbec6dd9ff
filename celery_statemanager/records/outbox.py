"""What a job keeps of the publication of its messages. Pure values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from celery_statemanager.indexset import IndexSet

if TYPE_CHECKING:
    from celery_statemanager.records.cells import Column


@dataclass(frozen=True, slots=True)
class Flow:
    """How the messages of a job are published. A job that has it owns its messages.

    Attributes:
        max_in_flight: the maximum number of rows that are published and have not ended; None for no limit.
        delayed: the rows whose messages have an eta or a countdown, compressed; not all of them if there are many.
        delayed_until: the latest time of these, in microseconds.
        paused: whether rows that have not begun are held back.
        pause_reason: the reason for the pause.
    """

    max_in_flight: int | None = None
    delayed: str = ""
    delayed_until: int = 0
    paused: bool = False
    pause_reason: str | None = None


class Place(NamedTuple):
    """Where a published message waits.

    Attributes:
        queue: the name of its queue.
        delayed_until: the time before which the broker may keep it elsewhere, in microseconds; 0 if it is not delayed.
        in_order: whether it leaves the queue after all other such messages that were published to the queue earlier.
    """

    queue: str
    delayed_until: int = 0
    in_order: bool = False


class Claim(NamedTuple):
    """Rows that one publisher is about to publish, or has published last.

    Attributes:
        at: the time of the claim.
        until: the time until which the publisher counts as alive, even if no worker record lists it.
    """

    rows: IndexSet
    at: int
    until: int = 0


@dataclass(frozen=True, slots=True)
class Returned:
    """Rows that were claimed, and whose message must be published because it was lost or was never published.

    Attributes:
        begun: rows of which a task has begun; a pause does not hold them back.
        waiting: rows of which no task has begun.
    """

    begun: IndexSet = IndexSet()
    waiting: IndexSet = IndexSet()

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.begun) + len(self.waiting)

    def __bool__(self) -> bool:
        return bool(self.begun or self.waiting)

    def plus(self, other: Returned) -> Returned:
        """Return the rows of both."""
        return Returned(self.begun.union(other.begun), self.waiting.union(other.waiting))

    def minus(self, rows: IndexSet) -> Returned:
        """Return the rows that are not in a set."""
        return Returned(self.begun.without(rows), self.waiting.without(rows))

    def within(self, rows: IndexSet) -> Returned:
        """Return the rows that are in a set."""
        return Returned(self.begun.within(rows), self.waiting.within(rows))


@dataclass(frozen=True, slots=True)
class OutboxState:
    """The part of an outbox that changes with the publication of messages.

    Attributes:
        claimed: the number of rows that have been claimed; they are claimed in row order.
        claims: the newest claim of each publisher. An earlier one was published, because publishers claim one after
            the other.
        returned: the rows that are to be claimed again. They are not in flight.
    """

    claimed: int = 0
    claims: Mapping[str, Claim] = field(default_factory=dict)
    returned: Returned = Returned()

    def in_flight(self, columns: Iterable[Column]) -> int:
        """Return the number of rows that are published and have not ended, given all columns of the job."""
        ended = sum(column.tally.rows for column in columns)
        return max(0, self.claimed - ended - len(self.returned))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRequest:
    """Claim rows whose messages are due.

    Attributes:
        publisher: the name under which one thread publishes them. It has published its earlier claim.
        limit: the maximum number of rows, not counting those of dead publishers.
        lease: seconds for which the publisher counts as alive even if no worker record lists it.
        dead: publishers whose claims are taken over, because they may not have published them.
        ended: publishers that have ended after they had published their claims, which are removed.
        returned: rows of its earlier claim that the publisher could not publish; the others are ignored.
        drop_unclaimed: of a cancelled job, count the rows that were never claimed as claimed, so that they are never
            published. A job that has settled is accepted too.
    """

    publisher: str
    limit: int
    lease: float = 0.0
    dead: frozenset[str] = frozenset()
    ended: frozenset[str] = frozenset()
    returned: Returned = Returned()
    drop_unclaimed: bool = False


class Claimed(NamedTuple):
    """The reply to a ``ClaimRequest``.

    Attributes:
        rows: the rows to publish now.
        again: those of them that were claimed before. Any of their stages may be due, or none.
        left: the number of rows that no publisher has claimed.
    """

    rows: IndexSet
    again: IndexSet
    left: int
