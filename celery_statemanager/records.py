"""What stores keep and exchange with the floors above: jobs, cells, and the requests on them. Pure values.

Times are integer microseconds since the epoch, UTC, from the store's clock. Payloads are JSON text.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import datetime, timezone
from enum import Enum
from operator import add, sub
from typing import Any, NamedTuple

from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import FINISHED, SCHEMA_VERSION, State, Status
from celery_statemanager.plan import Plan

CALLBACK_ROW = -1
"""The row that holds the runs of a job's callbacks, one tag per latch; no reader of the grid sees it."""


def new_event_id() -> str:
    """Create the event id of a write or a begin."""
    return os.urandom(16).hex()


def to_datetime(microseconds: int) -> datetime:
    """Give a record's time as an aware UTC datetime, exact to the microsecond until the year 2242."""
    return datetime.fromtimestamp(microseconds / 1_000_000, timezone.utc)


class JobKey(NamedTuple):
    """The pair under which a job is kept."""

    job_id: str
    run_token: str | None = None


class JobRef(NamedTuple):
    """One incarnation of a job: what a write must name, so that a straggler never meets a successor."""

    key: JobKey
    incarnation: str


class Delivery(NamedTuple):
    """How late a message is among those of its cell: compared by replacements, then by retries."""

    replacements: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True)
class Latch:
    """One of a job's three once-only decisions, and the callback that waits for it.

    Attributes:
        callback: a task signature as JSON text; None when only the decision is wanted.
        decided_at: when it fell; None until then.
        published_at: when the callback's message was known to be sent; None until then.
    """

    callback: str | None = None
    decided_at: int | None = None
    published_at: int | None = None

    @property
    def due(self) -> bool:
        """Whether the callback must still be published."""
        return self.callback is not None and self.decided_at is not None and self.published_at is None


LATCHES = ("success", "failure", "settled")


@dataclass(frozen=True, slots=True)
class Cancellation:
    """Who reads it learns why and since when a job is cancelled."""

    reason: str | None
    at: int


@dataclass(frozen=True, slots=True)
class Submission:
    """How far a job's messages were published.

    Attributes:
        published: rows whose message is known to be sent; they are sent in row order.
        done: whether the publisher came to its end, well or not.
        alive_until: until when the publisher is believed to live without another sign of it.
    """

    published: int
    done: bool
    alive_until: int


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job without its cells.

    ``num_tasks``, ``plan``, ``incarnation`` and ``created_at`` never change; ``last_activity`` is the store's
    (exact, or at most a minute old); everything else changes by compare-and-set on ``revision``.
    """

    job_id: str
    run_token: str | None
    incarnation: str
    num_tasks: int
    plan: Plan | None = None
    latches: Mapping[str, Latch] = field(default_factory=lambda: dict.fromkeys(LATCHES, Latch()))
    cancelled: Cancellation | None = None
    submission: Submission | None = None
    tombstoned_at: int | None = None
    created_at: int = 0
    last_activity: int = 0
    revision: int = 0
    schema_version: int = SCHEMA_VERSION

    @property
    def key(self) -> JobKey:
        """The pair under which the job is kept."""
        return JobKey(self.job_id, self.run_token)

    @property
    def ref(self) -> JobRef:
        """This very incarnation of the job."""
        return JobRef(self.key, self.incarnation)

    @property
    def schema(self) -> int:
        """The layout of its states; 0 for a job of another program, which numbers its own, until it is migrated."""
        return self.schema_version if self.incarnation else 0

    @property
    def settled(self) -> bool:
        """Whether the settled latch has fallen: the job is closed. Never true without a plan."""
        return self.latches["settled"].decided_at is not None

    @property
    def due(self) -> bool:
        """Whether a sweep must look at it: a callback to publish or a submission not known to be done."""
        unfinished = self.submission is not None and not self.submission.done
        return unfinished or any(latch.due for latch in self.latches.values())

    def with_latches(self, **latches: Latch) -> JobRecord:
        """Give the record with some latches exchanged."""
        return replace(self, latches={**self.latches, **latches})


@dataclass(slots=True)
class Cell:
    """All that a store keeps of one cell. Treated as a value: changed only by ``dataclasses.replace``.

    Attributes:
        open: whether an attempt is open on it.
        delivery: of the newest attempt or, after a retry was announced, of the one to come.
        owner: the worker that runs the open attempt; None for a Manager, which holds no lease.
        losses: how often an attempt was lost with its worker.
        kept: the message to send again when the worker is lost; dropped when the cell ends.
        blocked_by: the failed stage of the row that gave this never-begun cell its status.
        began_at: when the open attempt began.
    """

    status: int = 0
    message: str | None = None
    payload: str | None = None
    timestamp: int = 0
    version: int = 0
    event_id: str = ""
    attempt: int = 0
    open: bool = False
    delivery: Delivery = Delivery()
    owner: str | None = None
    losses: int = 0
    kept: str | None = None
    blocked_by: str | None = None
    began_at: int = 0
    schema_version: int = SCHEMA_VERSION

    @property
    def terminal(self) -> bool:
        """Whether the status is an ending."""
        return self.status < 0 or self.status == FINISHED

    @property
    def final(self) -> bool:
        """Whether the cell has ended: a terminal status and no open attempt."""
        return self.terminal and not self.open

    @property
    def waiting(self) -> bool:
        """Whether the cell is not started and nobody is at it."""
        return self.status == 0 and not self.open


class When(Enum):
    """What must hold for a write to be taken, beside its fence."""

    ANY = "any"
    OPEN = "open"
    """The writer's attempt must still be open: what a task and its worker write."""
    IDLE = "idle"
    """No attempt may be open and the cell must not be final: what is known of a message that never began."""


@dataclass(slots=True, kw_only=True)
class Begin:
    """Take the next attempt of a cell.

    Attributes:
        supersedes: the open attempt known to be dead; its number must still be the cell's. Counts as a loss.
        takes_over: begin whatever attempt is open (a Manager outside Celery).
    """

    tag: str
    task_index: int
    event_id: str = field(default_factory=new_event_id)
    delivery: Delivery = Delivery()
    owner: str | None = None
    kept: str | None = None
    message: str | None = None
    supersedes: int | None = None
    takes_over: bool = False


@dataclass(slots=True)
class Write:
    """Write one cell. Create it by what it means: ``state``, ``progress``, ``ending``, ``returned`` or ``lost``.

    Attributes:
        payload: JSON text; ignored when ``keep_payload``.
        new_progress: JSON text of a ``{"done": …, "total": …}`` to set in the payload that is kept.
        attempt: the fence; None for a Manager that took no attempt.
        if_owner: the worker and delivery that must hold the open attempt: how a worker's main process, which
            does not know the attempt's number, names it.
        begin: take an attempt in the same step, for one that could not begin earlier; needs no ``attempt``.
        ends_attempt: close the attempt.
        keep_app_status: keep the application's negative status, written during the open attempt, and, where this
            write has no message, its last message.
        block_later_stages: when the cell is final and negative afterwards, give the row's later stages its status.
        counts_as_loss: count a loss; the attempt's worker is gone.
        next_delivery: the delivery that a retry announced.
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
    begin: Begin | None = None
    when: When = When.ANY
    ends_attempt: bool = False
    keep_app_status: bool = False
    block_later_stages: bool = False
    counts_as_loss: bool = False
    next_delivery: Delivery | None = None

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
    ) -> Write:
        """Create the write that closes an open attempt whose message comes again: a retry, or one sent again."""
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
        )

    @classmethod
    def lost(
        cls, tag: str, task_index: int, message: str, *, attempt: int | None = None, event_id: str | None = None
    ) -> Write:
        """Create the write that marks as LOST an open attempt or, without ``attempt``, a message that never began."""
        write = cls.never_begun(tag, task_index, int(Status.LOST), message)
        write.event_id, write.counts_as_loss = event_id or write.event_id, True
        if attempt is not None:
            write.when, write.attempt, write.ends_attempt = When.OPEN, attempt, True
        return write

    @classmethod
    def never_begun(cls, tag: str, task_index: int, status: int, message: str) -> Write:
        """Create the write that ends a cell without an open attempt: its message never reached a task's body."""
        return cls(tag, task_index, status, message=message, keep_payload=True, when=When.IDLE, block_later_stages=True)


class Verdict(Enum):
    """What became of a Begin."""

    BEGUN = "begun"
    FINISHED = "finished"
    CLOSED = "closed"
    DUPLICATE = "duplicate"
    STALE = "stale"
    CANCELLED = "cancelled"


@dataclass(slots=True)
class BeginReply:
    """The verdict on a Begin and the cell as it is now (the other delivery's, for a duplicate).

    ``decided`` names the latches that fell in the same step: vetoing the last running row of a cancelled
    job settles it.
    """

    verdict: Verdict
    cell: Cell
    decided: tuple[str, ...] = ()


@dataclass(slots=True)
class WriteReply:
    """The cell as it is now, the latches that fell in the same step, and whether this write changed anything."""

    cell: Cell
    decided: tuple[str, ...] = ()
    changed: bool = True


class Tally(NamedTuple):
    """Counts of one column's written cells; each changes by (new cell − old cell) in the cell's own step.

    Each cell counts in one class at most: ``running``, ``finished``, ``failed`` or ``not_run``; in none of them, it is
    not started.

    Attributes:
        failed: negative, but for ``not_run``.
        not_run: negative because an earlier stage of the row failed (``Cell.blocked_by``).
        succeeded: final and FINISHED.
        ended: final.
        failed_final: final and negative, but not CANCELLED.
        pending: begun and not ended: an open attempt, or a status of work in progress.
        progress: sum over running cells of their fraction, in units of ``1 / FRACTION_UNIT``.
    """

    running: int = 0
    finished: int = 0
    failed: int = 0
    not_run: int = 0
    succeeded: int = 0
    ended: int = 0
    failed_final: int = 0
    pending: int = 0
    progress: int = 0

    @property
    def started(self) -> int:
        """The number of cells in any class but not started."""
        return self.running + self.finished + self.failed + self.not_run

    def plus(self, other: Tally) -> Tally:
        """Add field by field."""
        return Tally._make(map(add, self, other))

    def minus(self, other: Tally) -> Tally:
        """Subtract field by field."""
        return Tally._make(map(sub, self, other))

    def moved(self, old: Tally, new: Tally) -> Tally:
        """Give a column's tally after one cell, that added ``old``, adds ``new``."""
        if old[:-1] == new[:-1]:  # the most frequent by far, and in two thirds of the time: a running cell gets on
            return Tally._make((*self[:-1], self.progress - old.progress + new.progress))
        return Tally._make(map(add, self, map(sub, new, old)))


FRACTION_UNIT = 10**8


@dataclass(slots=True)
class Column:
    """One tag of a job as a survey found it.

    Attributes:
        expected: rows expected under the tag.
        lowest: the lowest cell, absent ones counted; None only where no row is expected.
        failed, running, missing, not_run: the rows in each class; None when not asked for.
    """

    tag: str
    expected: int
    tally: Tally
    lowest: State | None
    failed: IndexSet | None = None
    running: IndexSet | None = None
    missing: IndexSet | None = None
    not_run: IndexSet | None = None


@dataclass(slots=True)
class WorkerRecord:
    """What one worker process last said of itself.

    Attributes:
        body: JSON text, made and read by ``leases``: the attempts it runs, the rows it received.
        renewed_at: when it said so.
        lease_until: until when it counts as alive without saying more.
    """

    worker_id: str
    body: str
    renewed_at: int
    lease_until: int


@dataclass(slots=True)
class OpenAttempt:
    """An open attempt of a worker, as the sweep finds it."""

    ref: JobRef
    tag: str
    task_index: int
    cell: Cell


@dataclass(slots=True)
class StoredCell:
    """A cell as a migration finds it and as it gives it back.

    Attributes:
        mark: the store's own, by which it knows whether the cell is still as it was found.
    """

    tag: str
    task_index: int
    cell: Cell
    mark: Any = None


@dataclass(slots=True)
class Page:
    """Some jobs, and where to go on; ``cursor`` is None at the end."""

    jobs: list[JobRecord]
    cursor: str | None


@dataclass(slots=True)
class Batch:
    """What a watch saw since it was last read.

    Attributes:
        states: the newest version of each cell that changed, older changes first.
        job_changed: the job record may have changed (settled, cancelled, tombstoned).
        resync: changes were missed; the reader must list the states again.
    """

    states: list[State]
    job_changed: bool = False
    resync: bool = False
