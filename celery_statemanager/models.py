"""What users hold in their hands: statuses, states, events, summaries. Pure values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from datetime import datetime
from enum import IntEnum
from typing import Any

from celery_statemanager.indexset import IndexSet

SCHEMA_VERSION = 1
"""The newest layout of states and jobs that this release writes."""


class Status(IntEnum):
    """The statuses with a fixed meaning; any other int32 is the application's own.

    ``2 … 2**31 - 2`` is progress of the application's choice, ``-8`` and below its error codes.
    """

    NOT_STARTED = 0
    STARTED = 1
    FINISHED = 2**31 - 1
    FAILED = -1
    REVOKED = -2
    EXPIRED = -3
    REJECTED = -4
    TIMED_OUT = -5
    LOST = -6
    CANCELLED = -7


FINISHED = int(Status.FINISHED)
"""For comparisons on every write's way: looking an enum's member up takes longer than all the rest of them."""


def status_name(status: int) -> str:
    """Give a status as people read it: ``FINISHED``, ``40``, ``-12``."""
    try:
        return Status(status).name
    except ValueError:
        return str(int(status))


@dataclass(frozen=True, slots=True)
class State:
    """One cell of a job's grid as it was at one version.

    Attributes:
        timestamp: UTC, from the store's clock; None while the cell was never written.
        version: 1, 2, 3 … per cell, given by the store; 0 while the cell was never written.
        attempt: the execution that owns the cell, counted from 1; 0 when none ever began.
    """

    job_id: str
    task_index: int
    tag: str
    status: int = 0
    message: str | None = None
    payload: Mapping[str, Any] | None = field(default=None, hash=False)  # a dict has no hash, and a state has one
    timestamp: datetime | None = None
    version: int = 0
    event_id: str | None = None
    attempt: int = 0
    schema_version: int = SCHEMA_VERSION

    @property
    def terminal(self) -> bool:
        """Whether the status is an ending: FINISHED or negative."""
        return self.status < 0 or self.status == Status.FINISHED

    @property
    def finished(self) -> bool:
        """Whether the status is FINISHED."""
        return self.status == Status.FINISHED

    @property
    def failed(self) -> bool:
        """Whether the status is negative."""
        return self.status < 0

    @property
    def fraction(self) -> float | None:
        """How much of the cell is done, 0.0 … 1.0; None where the status does not say."""
        progress = self.payload.get("progress") if self.payload else None
        return fraction_of(self.status, progress)


_Draft: Any = make_dataclass("_Draft", [each.name for each in fields(State)], slots=True)


def state_from_fields(*values: Any) -> State:
    """Give ``State(*values)``, every field given, in a third of the time.

    For what is made at every write and every state read: a frozen dataclass sets its fields by a call each, so
    they are set before it is frozen.
    """
    draft = _Draft(*values)
    draft.__class__ = State
    frozen: State = draft
    return frozen


def fraction_of(status: int, progress: Any) -> float | None:
    """Give the share that a status and a ``{"done": …, "total": …}`` stand for."""
    if status == Status.FINISHED:
        return 1.0
    if isinstance(progress, Mapping):
        done, total = _number(progress.get("done")), _number(progress.get("total"))
        if done is not None and total is not None and 0 <= done <= total and total > 0:
            return _share(done, total)
    if 2 <= status <= 100:
        return status / 100
    return 0.0 if status in (0, 1) else None


def _share(done: float, total: float) -> float:
    try:
        return done / total
    except OverflowError:  # a float of an integer beyond all floats
        return 0.0


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


@dataclass(frozen=True, slots=True)
class StateEvent:
    """One delivery of a subscription: ``replay`` tells what existed from what changed."""

    state: State
    replay: bool


_EventDraft: Any = make_dataclass("_EventDraft", [each.name for each in fields(StateEvent)], slots=True)


def event_from_fields(state: State, replay: bool) -> StateEvent:
    """Give ``StateEvent(state, replay)``; see ``state_from_fields``."""
    draft = _EventDraft(state, replay)
    draft.__class__ = StateEvent
    frozen: StateEvent = draft
    return frozen


@dataclass(frozen=True, slots=True)
class Summary:
    """How far a job, or one tag of it, has got.

    The counts are cells and add up to ``expected``. The index sets hold the rows with at least one
    such cell; they are None when they were not asked for. Where nothing is expected, ``lowest`` is a
    state without a tag that nobody wrote.

    Attributes:
        failed: cells with a negative status of their own.
        not_run: cells that an earlier stage's failure kept from running. ``failed`` does not count them, although
            they have the status of the stage that failed.
    """

    num_tasks: int
    expected: int
    not_started: int
    running: int
    finished: int
    failed: int
    lowest: State
    fraction: float
    failed_indexes: IndexSet | None = None
    running_indexes: IndexSet | None = None
    missing_indexes: IndexSet | None = None
    not_run: int = 0
    not_run_indexes: IndexSet | None = None


@dataclass(frozen=True, slots=True)
class Scope:
    """The cells a reader asks for: all, a column, a row, or one."""

    tag: str | None = None
    task_index: int | None = None

    def holds(self, tag: str, task_index: int) -> bool:
        """Whether a cell is one of them."""
        return self.tag in (None, tag) and self.task_index in (None, task_index)
