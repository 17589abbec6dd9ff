"""Cells, what is derived from them, and the workers that run them. Pure values."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import add, sub
from typing import Any, NamedTuple, TypeVar

from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import FINISHED, SCHEMA_VERSION, State, Status
from celery_statemanager.records.jobs import JobRef


class Delivery(NamedTuple):
    """The rank of a message among those of its cell, compared by its fields in their order.

    Attributes:
        publication: how often the message of the cell has gone back to the outbox; see ``Write.due_again``.
        replacements: how often the task of the cell has replaced itself.
        retries: how often Celery has retried the task since.
    """

    publication: int = 0
    replacements: int = 0
    retries: int = 0


class Stall(NamedTuple):
    """Whether an open attempt has stalled (rule R23).

    Attributes:
        after: the microseconds without a write after which it counts as stalled; 0 for no limit.
        since: the time of its last move if it has stalled; 0 otherwise.
        stands_in: the file, the line and the function in which its body stood, if that is known.
    """

    after: int = 0
    since: int = 0
    stands_in: str | None = None


@dataclass(slots=True)
class Cell:
    """Everything that a store keeps of one cell. It is immutable: change it with ``dataclasses.replace``.

    Attributes:
        open: whether an attempt is open.
        delivery: the delivery of the newest attempt or, after a retry, of the next one.
        owner: the worker that runs the open attempt; None for a Manager, which holds no lease. A closed cell keeps it
            only while something may follow the attempt, see ``awaits_end`` and ``awaits_delivery``.
        losses: the number of attempts that were lost with their worker.
        kept: the message of a retry or of a replacement, if it differs from the stored message of the stage;
            removed when the cell ends.
        blocked_by: the failed stage of the row; its status was written to this cell, which never began.
        began_at: when the attempt began; 0 if another process closed it, or its message is due again. If the attempt's
            own end follows, the time of that.
        generation: the generation of the job in which the cell was last reset; 1 if never.
        failures: how often it has ended with a negative status of its own other than CANCELLED.
        stall: the limit of the open attempt, and whether it has stalled. Every write but ``Write.stalled`` resets that.
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
    generation: int = 1
    failures: int = 0
    stall: Stall = Stall()

    @property
    def shown_message(self) -> str | None:
        """The message that readers see: that of the last write, and where the body of a stalled attempt stands."""
        return message_with_place(self.message, self.stall.stands_in) if self.stall.since else self.message

    @property
    def terminal(self) -> bool:
        """Whether the status is negative or FINISHED."""
        return self.status < 0 or self.status == FINISHED

    @property
    def final(self) -> bool:
        """Whether the cell has ended: a terminal status and no open attempt."""
        return self.terminal and not self.open

    @property
    def has_run(self) -> bool:
        """Whether an attempt of this final cell has begun since the outbox last published the message."""
        return self.began_at != 0 or self.owner is not None

    @property
    def succeeded(self) -> bool:
        """Whether the cell has ended as FINISHED."""
        return self.status == FINISHED and not self.open

    @property
    def has_failed(self) -> bool:
        """Whether the cell has ended with a negative status of its own other than CANCELLED."""
        return self.status < 0 and self.status != Status.CANCELLED and not self.open and self.blocked_by is None

    @property
    def awaits_end(self) -> bool:
        """Whether another process closed the attempt: presumed dead, or known to have finished.

        Its own end replaces that, unless another attempt has begun.
        """
        return self.owner is not None and not self.open and not self.began_at

    @property
    def awaits_delivery(self) -> bool:
        """Whether the attempt has ended, and the broker is to deliver its message again."""
        return self.owner is not None and not self.terminal and not self.open and self.began_at != 0

    @property
    def awaits_message(self) -> bool:
        """Whether its next attempt begins with a message that the outbox or Celery publishes."""
        return not (self.open or self.final or self.awaits_delivery)

    @property
    def held(self) -> bool:
        """Whether sweeps check the attempt of a worker: it is open, or awaits its delivery."""
        return self.owner is not None and (self.open or self.awaits_delivery)

    @property
    def is_due(self) -> bool:
        """Whether its message must be published, unless it was published since it became due."""
        return not (self.open or self.final) and (self.attempt == 0 or self.began_at == 0)

    @property
    def waiting(self) -> bool:
        """Whether the cell is not started and no attempt is open."""
        return self.status == 0 and not self.open


Message = TypeVar("Message", str, str | None)


def message_with_place(message: Message, stands_in: str | None) -> Message:
    """Return a message that ends with the place in which a body stands, if that is known."""
    if not stands_in:
        return message
    return f"{message}; stands in {stands_in}" if message else f"stands in {stands_in}"


@dataclass(slots=True)
class StoredCell:
    """A cell as a migration reads it and writes it back.

    Attributes:
        mark: a value defined by the store that changes when the cell changes.
    """

    tag: str
    task_index: int
    cell: Cell
    mark: Any = None


@dataclass(slots=True)
class OpenAttempt:
    """An attempt of a worker that is open, or whose message the broker is to deliver again, as the sweep reads it."""

    ref: JobRef
    tag: str
    task_index: int
    cell: Cell


@dataclass(slots=True)
class WorkerRecord:
    """The newest report of one worker process.

    Attributes:
        body: JSON text that ``leases`` writes and reads: the attempts that it runs, the rows that it received.
        renewed_at: the time of the report.
        lease_until: the time until which the worker counts as alive without another report.
    """

    worker_id: str
    body: str
    renewed_at: int
    lease_until: int


class Tally(NamedTuple):
    """Counts of one column's written cells; each changes by (new cell − old cell) in the cell's own step.

    A cell is in at most one of the classes ``running``, ``finished``, ``failed`` and ``not_run``. A cell in none of
    them is not started.

    Attributes:
        failed: negative, without ``not_run``.
        not_run: negative because an earlier stage of the row failed (``Cell.blocked_by``).
        succeeded: final and FINISHED.
        ended: final.
        failures: how often cells have failed, also those that were reset since; see ``Cell.failures``.
        pending: begun and not ended: an open attempt, or a status of work in progress.
        rows: final, in the last stage of a row of the plan: the rows that have ended.
        failed_rows: those with ``Cell.has_failed``: one for each row that has failed, because no later stage runs.
        stalled: with an open attempt that has stalled.
        progress: the sum of the fractions of running cells, in units of ``1 / FRACTION_UNIT``.
    """

    running: int = 0
    finished: int = 0
    failed: int = 0
    not_run: int = 0
    succeeded: int = 0
    ended: int = 0
    failures: int = 0
    pending: int = 0
    rows: int = 0
    failed_rows: int = 0
    stalled: int = 0
    progress: int = 0

    @property
    def started(self) -> int:
        """The number of cells that are not ``not started``."""
        return self.running + self.finished + self.failed + self.not_run

    def plus(self, other: Tally) -> Tally:
        """Add field by field."""
        return Tally._make(map(add, self, other))

    def minus(self, other: Tally) -> Tally:
        """Subtract field by field."""
        return Tally._make(map(sub, self, other))

    def moved(self, old: Tally, new: Tally) -> Tally:
        """Return a column's tally after a cell that added ``old`` adds ``new``."""
        if old[:-1] == new[:-1]:  # progress of a running cell, by far the most frequent change
            return Tally._make((*self[:-1], self.progress - old.progress + new.progress))
        return Tally._make(map(add, self, map(sub, new, old)))


FRACTION_UNIT = 10**8


@dataclass(slots=True)
class Column:
    """One tag of a job as of one moment.

    Attributes:
        expected: rows expected under the tag.
        lowest: the lowest cell, missing cells included; None only where no row is expected.
        failed, running, missing, not_run, stalled: the rows in each class; None if not requested.
    """

    tag: str
    expected: int
    tally: Tally
    lowest: State | None
    failed: IndexSet | None = None
    running: IndexSet | None = None
    missing: IndexSet | None = None
    not_run: IndexSet | None = None
    stalled: IndexSet | None = None


@dataclass(slots=True)
class Batch:
    """The changes that a watch has seen since it was last read.

    Attributes:
        states: the newest version of each cell that changed, older changes first.
        job_changed: the job record may have changed (settled, cancelled, tombstoned).
        resync: changes were lost, or the store was restored; the reader must list the states again.
        cursors: for each state, the position after its change: a watch since then returns what changed later.
    """

    states: list[State]
    job_changed: bool = False
    resync: bool = False
    cursors: list[str] = field(default_factory=list)
