"""What a job keeps of the publication of its messages. Pure values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from celery_statemanager.indexset import IndexSet


@dataclass(frozen=True, slots=True)
class Flow:
    """How the messages of a job are published. A job that has it owns its messages.

    Attributes:
        max_in_flight: the maximum number of rows that are published and have not ended; None for no limit.
        delayed: the rows whose messages have an eta or a countdown, compressed; not all of them if there are many.
        delayed_until: the latest time of these, in microseconds.
    """

    max_in_flight: int | None = None
    delayed: str = ""
    delayed_until: int = 0


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
class OutboxState:
    """The part of an outbox that changes with the publication of messages.

    Attributes:
        claimed: the number of rows that have been claimed; they are claimed in row order.
        claims: the newest claim of each publisher. An earlier one was published, because publishers claim one after
            the other.
    """

    claimed: int = 0
    claims: Mapping[str, Claim] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRequest:
    """Claim rows whose messages are due.

    Attributes:
        publisher: the id of the process or thread that publishes them. It has published its earlier claim.
        limit: the maximum number of rows that no publisher has claimed before.
        lease: seconds for which the publisher counts as alive even if no worker record lists it.
        dead: publishers whose claims are taken over, because they may not have published them.
    """

    publisher: str
    limit: int
    lease: float = 0.0
    dead: frozenset[str] = frozenset()


class Claimed(NamedTuple):
    """The reply to a ``ClaimRequest``.

    Attributes:
        rows: the rows to publish now.
        doubtful: those of them that a dead publisher may have published before.
        left: the number of rows that no publisher has claimed.
    """

    rows: IndexSet
    doubtful: IndexSet
    left: int
