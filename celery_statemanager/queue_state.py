"""The queues of the broker in one sweep: whether a message has left its queue, because it is empty or was overtaken."""

from __future__ import annotations

from typing import Protocol

from celery_statemanager.at_work import AtWork
from celery_statemanager.indexset import IndexSet
from celery_statemanager.overtaken import Order, Overtaken
from celery_statemanager.records import Cell, JobRecord, OutboxState, Place
from celery_statemanager.suspects import PutOff

_put_off = PutOff()
"""The stages whose running tasks this process does not look at again before a time."""


class Queues(Protocol):
    """The queues of the broker, as the app of a sweep sees them."""

    sends_ahead: bool
    """Whether the broker sends messages to a worker whose main loop does not read them. Such a worker lists none."""

    keeps_order: bool
    """Whether messages without an eta and a priority leave a queue in the order in which they were published."""

    put_back_delay: float
    """Seconds within which the broker puts messages back after the connection of their worker has broken."""

    def queues_of(self, job: JobRecord) -> frozenset[str]:
        """Return the queues of some messages of a job. They should include all that its messages go to."""

    def place_of(self, job: JobRecord, tag: str, row: int, cell: Cell | None = None) -> Place | None:
        """Return where a published message waits; None if that is unknown, as for one of another app.

        Args:
            cell: the cell of the message, if an attempt of it has begun.
        """

    def place_of_callback(self, job: JobRecord, latch: str, cell: Cell) -> Place | None:
        """Return where the published message of a callback waits; None if that is unknown, as for one of another app.

        Args:
            latch: its name.
        """

    def message_count(self, queue: str) -> int | None:
        """Return the number of messages in a queue, 0 if it does not exist; None if the broker does not know."""


class QueueState:
    """Which messages have left their queues.

    Args:
        old: what earlier sweeps have found out about the order of messages.
        lease, now: in microseconds.
        at_work: the messages that run or that live workers have.
    """

    def __init__(self, queues: Queues, old: Order, lease: int, now: int, at_work: AtWork) -> None:
        self._queues = queues
        self._lease = lease
        self._now = now
        self._at_work = at_work
        put_back_by = at_work.connection_ended_at + max(lease, round(queues.put_back_delay * 1_000_000))
        self.overtaken = Overtaken(old, lease, now, put_back_by)
        self._counts: dict[str, int | None] = {}

    def add(self, job: JobRecord, outbox: OutboxState, unpublished: IndexSet, queues: frozenset[str]) -> None:
        """Note for the next sweep which messages of a job are published and which run, if its queues keep their order.

        Args:
            unpublished: claimed rows that may not be published.
            queues: those of the job.
        """
        if not self._queues.keeps_order:
            return
        self.overtaken.add(job, outbox, unpublished, queues)
        for tag, row in self._at_work.newest(job.ref):
            after, stage = self.overtaken.published_after(job, row), (job.ref, tag)
            is_news = any(self.overtaken.is_news(queue, after) for queue in queues)
            if is_news and _put_off.until(stage) <= self._now:
                place = self._queues.place_of(job, tag, row)
                if place is not None and place.in_order:
                    self.overtaken.note_begun(place.queue, after)
                else:
                    _put_off.put(stage, self._now + self._lease)

    def order(self, now: int) -> Order:
        """Return what the next sweep knows of the order of messages.

        Args:
            now: a time at the end of this sweep.
        """
        return self.overtaken.next(now) if self._queues.keeps_order else Order()

    def is_empty(self, queue: str) -> bool:
        """Return whether a queue is known to have no messages."""
        if queue not in self._counts:
            self._counts[queue] = self._queues.message_count(queue)
        return self._counts[queue] == 0

    def has_left(self, place: Place, published_by: int | None) -> bool:
        """Return whether a message has left its queue that was published by a time; None if that time is unknown."""
        is_overtaken = place.in_order and self.overtaken.have_left(place.queue, published_by)
        return is_overtaken or self.is_empty(place.queue)

    def may_have_left(self, queues: frozenset[str], published_by: int | None) -> bool:
        """Return whether a message has left its queue, if that is one of some queues."""
        return any(self.has_left(Place(queue, in_order=True), published_by) for queue in queues)
