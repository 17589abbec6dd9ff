"""The requests on a cell, and the replies to them."""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, dataclass, field
from enum import Enum

from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import FINISHED, Status
from celery_statemanager.records.cells import Cell, Delivery


def new_event_id() -> str:
    """Create the event id of a write or a begin."""
    return os.urandom(16).hex()


@dataclass(slots=True, kw_only=True)
class Reset:
    """Reset a row that has not succeeded, so that it runs again from one of its stages on.

    Attributes:
        tag: the stage that runs again first.
        generation: the generation of the job in which the row runs again. It is reset once in each.
    """

    tag: str
    task_index: int
    generation: int
    event_id: str = field(default_factory=new_event_id)


class When(Enum):
    """The condition under which a write is accepted, in addition to its fence."""

    ANY = "any"
    OPEN = "open"
    """The writer's attempt must still be open. Tasks and their workers write under this condition."""
    IDLE = "idle"
    """No attempt may be open and the cell must not be final: the message never began."""


@dataclass(slots=True, kw_only=True)
class Begin:
    """Take the next attempt of a cell.

    Attributes:
        supersedes: the number of the open attempt known to be dead; the cell must still have it.
        counts_as_loss: count the superseded attempt as a loss; False if its worker has ended it itself.
        takes_over: begin even if an attempt is open (a Manager outside Celery).
        kept: the message of the attempt, for ``Cell.kept``; None leaves that of the cell.
        may_wait: give the row back if its job is paused and the cell has not begun.
        stall_after: the microseconds without a write after which the attempt counts as stalled; 0 for no limit.
    """

    tag: str
    task_index: int
    event_id: str = field(default_factory=new_event_id)
    delivery: Delivery = Delivery()
    owner: str | None = None
    kept: str | None = None
    message: str | None = None
    supersedes: int | None = None
    counts_as_loss: bool = True
    takes_over: bool = False
    may_wait: bool = False
    stall_after: int = 0


@dataclass(slots=True)
class Write:
    """Write one cell. The class methods create the kinds of writes that exist.

    Attributes:
        payload: JSON text; ignored when ``keep_payload``.
        new_progress: JSON text of a ``{"done": …, "total": …}`` to set in the payload that is kept.
        attempt: the number of the attempt that must be the cell's; None for a Manager that took none.
        if_owner: the worker and delivery that must hold the open attempt; for a worker's main process, which does
            not know the number of the attempt.
        delivery: the delivery whose message never began; the write is refused if a later one is recorded.
        begin: take an attempt in the same step, for an execution that could not begin earlier or, with ``attempt``,
            whose begin the store has lost. Ignored if the cell has reached that attempt.
        ends_attempt: close the attempt.
        keep_app_status: keep the application's negative status, written during the open attempt, and, where this
            write has no message, its last message.
        block_later_stages: if the cell is final and negative afterwards, set the row's later stages to its status.
        counts_as_loss: count a loss, because the attempt's worker is dead.
        next_delivery: the delivery that a retry will make.
        presumed_dead: the process of the attempt has not ended it, so that its own end may still replace this one.
        awaits_delivery: with ``ends_attempt``, keep the owner, because the broker is to deliver the message again.
        kept: the new ``Cell.kept``, if the cell does not end; None leaves it.
        value: what the row keeps of the stage if this write finishes it, as text of at most ``MAX_VALUE_BYTES``; empty
            removes it, None keeps the old. That of the last stage is the result of the row; see also ``value_row``.
        next_is_due: with FINISHED, the publisher claims the row itself in order to publish its next stage.
        due_again: the message of the cell is to be published once more: the row goes back to the outbox, and only a
            delivery with the next publication number may begin.
        publisher: the publisher that claims the rows for which this write makes room; None to claim none.
        stalled_since: mark the attempt as stalled since this time, and change nothing else of the cell.
        if_version: with ``stalled_since``, the version of the cell that has not moved.
        stands_in: with ``stalled_since``, the place in which the body stands, if that is known.
    """

    tag: str
    task_index: int
    status: int
    event_id: str = field(default_factory=new_event_id)
    message: str | None = None
    payload: str | None = None
    _: KW_ONLY
    keep_payload: bool = False
    new_progress: str | None = None
    attempt: int | None = None
    if_owner: tuple[str, Delivery] | None = None
    delivery: Delivery | None = None
    begin: Begin | None = None
    when: When = When.ANY
    ends_attempt: bool = False
    keep_app_status: bool = False
    block_later_stages: bool = False
    counts_as_loss: bool = False
    next_delivery: Delivery | None = None
    presumed_dead: bool = False
    awaits_delivery: bool = False
    kept: str | None = None
    value: str | None = None
    next_is_due: bool = False
    due_again: bool = False
    publisher: str | None = None
    stalled_since: int | None = None
    if_version: int | None = None
    stands_in: str | None = None

    def begins(self, cell: Cell) -> bool:
        """Return whether this write takes an attempt of the cell before it is applied."""
        return self.begin is not None and (self.attempt is None or self.attempt > cell.attempt)

    @classmethod
    def state(
        cls,
        tag: str,
        task_index: int,
        status: int,
        message: str | None = None,
        payload: str | None = None,
        *,
        event_id: str | None = None,
    ) -> Write:
        """Create a write of what the application reports; the payload is replaced."""
        return cls(tag, task_index, status, new_event_id() if event_id is None else event_id, message, payload)

    @classmethod
    def progress(
        cls,
        tag: str,
        task_index: int,
        status: int,
        progress: str,
        message: str | None = None,
        *,
        event_id: str | None = None,
    ) -> Write:
        """Create a write of the application's progress; the rest of the payload is kept."""
        write = cls.state(tag, task_index, status, message, event_id=event_id)
        write.keep_payload, write.new_progress = True, progress
        return write

    @classmethod
    def ending(
        cls,
        tag: str,
        task_index: int,
        status: int,
        message: str | None = None,
        *,
        attempt: int | None = None,
        if_owner: tuple[str, Delivery] | None = None,
        progress: str | None = None,
        keep_app_status: bool = True,
    ) -> Write:
        """Create the last write of an open attempt.

        Args:
            keep_app_status: False where this status replaces a negative one that the application wrote.
        """
        return cls(
            tag,
            task_index,
            status,
            message=message,
            keep_payload=True,
            new_progress=progress,
            attempt=attempt,
            if_owner=if_owner,
            when=When.OPEN,
            ends_attempt=True,
            keep_app_status=keep_app_status,
            block_later_stages=True,
        )

    @classmethod
    def cut_off(cls, tag: str, task_index: int, status: int, message: str, delivery: Delivery) -> Write:
        """Create the write that ends a cell whose replacement cannot end it, because a part of the replacement failed.

        It begins the delivery that will not come, because the replaced attempt may still be open. Any number of parts
        may fail; only the first one changes the cell.
        """
        write = cls.ending(tag, task_index, status, message)
        write.event_id = f"{task_index}.{tag}.{delivery.replacements}.cut-off"
        write.begin = Begin(tag=tag, task_index=task_index, delivery=delivery)
        return write

    @classmethod
    def returned(
        cls,
        tag: str,
        task_index: int,
        message: str,
        next_delivery: Delivery | None = None,
        *,
        attempt: int | None = None,
        if_owner: tuple[str, Delivery] | None = None,
        progress: str | None = None,
        counts_as_loss: bool = False,
        awaits_delivery: bool = False,
    ) -> Write:
        """Create the write that closes an open attempt whose message will be delivered again.

        Args:
            awaits_delivery: True if only the broker can do that, because the message was requeued.
        """
        return cls(
            tag,
            task_index,
            int(Status.STARTED),
            message=message,
            keep_payload=True,
            new_progress=progress,
            attempt=attempt,
            if_owner=if_owner,
            when=When.OPEN,
            ends_attempt=True,
            counts_as_loss=counts_as_loss,
            next_delivery=next_delivery,
            presumed_dead=counts_as_loss and not awaits_delivery,
            awaits_delivery=awaits_delivery,
        )

    @classmethod
    def sent_back(
        cls,
        tag: str,
        task_index: int,
        message: str,
        *,
        attempt: int,
        is_open: bool = False,
        counts_as_loss: bool = False,
    ) -> Write:
        """Create the write that makes the message of a cell due again.

        Args:
            attempt: the number of the last attempt; 0 if none has begun.
            is_open: whether this attempt is open, because its worker died.
        """
        return cls(
            tag,
            task_index,
            int(Status.STARTED),
            message=message,
            keep_payload=True,
            attempt=attempt,
            when=When.OPEN if is_open else When.IDLE,
            ends_attempt=is_open,
            presumed_dead=is_open,
            counts_as_loss=counts_as_loss,
            due_again=True,
        )

    @classmethod
    def lost(
        cls, tag: str, task_index: int, message: str, *, attempt: int | None = None, event_id: str | None = None
    ) -> Write:
        """Create the write that marks as LOST an open attempt or, without ``attempt``, a message that never began."""
        write = cls.never_begun(tag, task_index, int(Status.LOST), message)
        write.event_id, write.counts_as_loss = event_id or write.event_id, True
        if attempt is not None:
            write.when, write.attempt, write.ends_attempt, write.presumed_dead = When.OPEN, attempt, True, True
        return write

    @classmethod
    def stalled(
        cls, tag: str, task_index: int, *, attempt: int, if_version: int, since: int, stands_in: str | None = None
    ) -> Write:
        """Create the write that marks the open attempt of a worker as stalled, unless its cell has been written.

        An attempt that is already marked stays as it is, except that a place is added if it has none.
        """
        return cls(
            tag,
            task_index,
            int(Status.STARTED),
            keep_payload=True,
            attempt=attempt,
            when=When.OPEN,
            stalled_since=since,
            if_version=if_version,
            stands_in=stands_in,
        )

    @classmethod
    def proven(cls, tag: str, task_index: int, *, attempt: int) -> Write:
        """Create the write that ends an attempt as FINISHED because its success is known from elsewhere."""
        write = cls.ending(tag, task_index, FINISHED, attempt=attempt)
        write.presumed_dead = True
        return write

    @classmethod
    def never_begun(
        cls, tag: str, task_index: int, status: int, message: str, *, delivery: Delivery | None = None
    ) -> Write:
        """Create the write that ends a cell without an open attempt: its message never reached a task's body.

        CANCELLED is refused if the job is not cancelled.
        """
        return cls(
            tag,
            task_index,
            status,
            message=message,
            keep_payload=True,
            delivery=delivery,
            when=When.IDLE,
            block_later_stages=True,
        )


class Verdict(Enum):
    """The outcome of a Begin."""

    BEGUN = "begun"
    FINISHED = "finished"
    CLOSED = "closed"
    DUPLICATE = "duplicate"
    STALE = "stale"
    CANCELLED = "cancelled"
    PAUSED = "paused"
    EXPIRED = "expired"
    """The deadline of the job has passed, and the job is to be cancelled."""


@dataclass(slots=True)
class BeginReply:
    """The verdict on a Begin and the current cell (that of the other delivery, for a duplicate).

    ``decided`` names the latches that the same step decided: refusing to begin the last running row of a cancelled
    job settles it.
    """

    verdict: Verdict
    cell: Cell
    decided: tuple[str, ...] = ()


@dataclass(slots=True)
class WriteReply:
    """The current cell, and what the same step caused.

    Attributes:
        decided: the names of the latches that were decided.
        changed: whether this write changed anything.
        claimed: the rows that the writer must publish now. A repeated write gets those of the first one again.
        again: those of them that may have been claimed before, as in ``Claimed``.
    """

    cell: Cell
    decided: tuple[str, ...] = ()
    changed: bool = True
    claimed: IndexSet = IndexSet()
    again: IndexSet = IndexSet()
