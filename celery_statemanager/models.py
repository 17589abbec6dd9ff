"""The public value types: statuses, states, events and summaries. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from datetime import datetime, timedelta, timezone
from enum import IntEnum
from typing import Any
from urllib.parse import quote

from celery_statemanager.indexset import IndexSet

SCHEMA_VERSION = 2
"""Version of the layout in which this release writes states and jobs."""


class Status(IntEnum):
    """The statuses with a fixed meaning. Applications define the others.

    ``2 … 2**31 - 2`` is progress, ``-8`` and below are error codes.
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
"""Plain int for the comparisons in each write, because accessing an enum member costs more than comparing it."""


def status_name(status: int) -> str:
    """Return the name of a status, or its number if it has none: ``FINISHED``, ``40``, ``-12``."""
    try:
        return Status(status).name
    except ValueError:
        return str(int(status))


@dataclass(frozen=True, slots=True)
class State:
    """One version of one cell of a job's grid.

    Attributes:
        timestamp: UTC time of the write by the store's clock; None if the cell was never written.
        version: 1, 2, 3 … per cell, assigned by the store; 0 if the cell was never written.
        attempt: number of the execution that owns the cell, from 1; 0 if none has begun.
        stalled: whether this execution runs and has written nothing for longer than its ``stall_after``.
    """

    job_id: str
    task_index: int
    tag: str
    status: int = 0
    message: str | None = None
    payload: Mapping[str, Any] | None = field(default=None, hash=False)  # a dict is not hashable, but a state is
    timestamp: datetime | None = None
    version: int = 0
    event_id: str | None = None
    attempt: int = 0
    schema_version: int = SCHEMA_VERSION
    stalled: bool = False

    @property
    def terminal(self) -> bool:
        """Whether the status is terminal: FINISHED or negative."""
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
        """The completed share of the cell, 0.0 … 1.0; None if the status does not define one."""
        progress = self.payload.get("progress") if self.payload else None
        return fraction_of(self.status, progress)

    def as_dict(self) -> dict[str, Any]:
        """Return the state as a JSON object with the field names of the wire; ``payload`` only if there is one."""
        wire: dict[str, Any] = {
            "jobID": self.job_id,
            "tag": self.tag,
            "taskID": self.task_index,
            "version": self.version,
            "status": int(self.status),
            "message": self.message,
            "timestamp": None if self.timestamp is None else rfc3339(self.timestamp),
            "eventID": self.event_id,
            "attempt": self.attempt,
            "schemaVersion": self.schema_version,
            "stalled": self.stalled,
        }
        if self.payload is not None:
            wire["payload"] = dict(self.payload)
        return wire


_Draft: Any = make_dataclass("_Draft", [each.name for each in fields(State)], slots=True)


def state_from_fields(*values: Any) -> State:
    """Return ``State(*values)`` in a third of the time. ``values`` must contain every field.

    A frozen dataclass sets each field by a function call. Every read and write creates a state, so the fields are
    set on a mutable class of the same layout, which then becomes a ``State``.
    """
    draft = _Draft(*values)
    draft.__class__ = State
    frozen: State = draft
    return frozen


def rfc3339(moment: datetime) -> str:
    """Return an aware datetime as RFC 3339 text in UTC, with microseconds and ``Z``."""
    return moment.astimezone(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")


def fraction_of(status: int, progress: Any) -> float | None:
    """Return the completed share by a progress payload (``{"done": …, "total": …}``) or else by the status, if any."""
    if status == Status.FINISHED:
        return 1.0
    if isinstance(progress, Mapping):
        done, total = _number(progress.get("done")), _number(progress.get("total"))
        if done is not None and total is not None and 0 <= done <= total and total > 0:
            try:
                return done / total
            except OverflowError:  # an integer exceeds every float
                return 0.0
    if 2 <= status <= 100:
        return status / 100
    return 0.0 if status in (0, 1) else None


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


@dataclass(frozen=True, slots=True)
class StateEvent:
    """One event of a subscription.

    Attributes:
        replay: True for a state that existed before the subscription, False for a change.
        position: the part of the cursor that says up to which change all cells were delivered.
        in_listing: whether more cells that existed at this position follow.
        resync: whether the event has no cell of its own, only an unwritten state with an empty tag. All earlier states
            are void, and a replay follows. Only subscriptions that continue at a cursor yield such events.
    """

    state: State
    replay: bool
    position: str = field(default="", compare=False)
    in_listing: bool = field(default=False, compare=False)
    resync: bool = False

    @property
    def cursor(self) -> str:
        """Where to continue after this event, in any process: ``subscribe(since=event.cursor)``. ASCII, one line."""
        if not self.in_listing:
            return self.position
        state = self.state
        return f"{self.position}@{microseconds_of(state)}.{state.task_index}.{quote(state.tag, safe='')}"


def microseconds_of(state: State) -> int:
    """Return the time of a state in microseconds since the epoch; 0 if it was never written."""
    return 0 if state.timestamp is None else (state.timestamp - _EPOCH) // _MICROSECOND


_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)
_EventDraft: Any = make_dataclass("_EventDraft", [each.name for each in fields(StateEvent)], slots=True)


def event_from_fields(state: State, replay: bool, position: str, in_listing: bool, resync: bool) -> StateEvent:
    """Return an event, created as in ``state_from_fields``."""
    draft = _EventDraft(state, replay, position, in_listing, resync)
    draft.__class__ = StateEvent
    frozen: StateEvent = draft
    return frozen


@dataclass(frozen=True, slots=True)
class Summary:
    """The progress of a job or of one of its tags.

    The counts are cells and add up to ``expected``. Each index set contains the rows with at least one such cell, and
    is None if it was not requested. If no cell is expected, ``lowest`` is an unwritten state with an empty tag.

    Attributes:
        failed: cells with a negative status of their own.
        not_run: cells that did not run because an earlier stage failed. ``failed`` does not count them, although they
            have the status of that stage.
        stalled: cells whose attempt has stalled. They are counted in their class as well.
        generation: that of the job when the cells were counted: 1, and one more after each rerun.
        failed_rows: rows that have failed in this generation, without CANCELLED; in the summary of one of several tags,
            the rows that have failed in this stage, in any generation.
        max_failed: the number of failed rows that the job tolerates; None if it has no such limit.
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
    generation: int = 1
    failed_rows: int = 0
    max_failed: int | None = None
    stalled: int = 0
    stalled_indexes: IndexSet | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as a JSON object, with the field names of the wire where these exist.

        Index sets are texts such as ``"3,17-20"``; those that are None are omitted. ``lowest`` is a state.
        """
        sets = {
            "failedIDs": self.failed_indexes,
            "runningIDs": self.running_indexes,
            "missingIDs": self.missing_indexes,
            "notRunIDs": self.not_run_indexes,
            "stalledIDs": self.stalled_indexes,
        }
        return {
            "numTasks": self.num_tasks,
            "status": int(self.lowest.status),
            "fraction": round(self.fraction, 6),
            "expected": self.expected,
            "notStarted": self.not_started,
            "running": self.running,
            "finished": self.finished,
            "failed": self.failed,
            "notRun": self.not_run,
            "stalled": self.stalled,
            "generation": self.generation,
            "failedRows": self.failed_rows,
            "maxFailed": self.max_failed,
            "lowest": self.lowest.as_dict(),
            **{name: str(rows) for name, rows in sets.items() if rows is not None},
        }


@dataclass(frozen=True, slots=True)
class Scope:
    """The cells that a read covers: all, one column, one row or one cell."""

    tag: str | None = None
    task_index: int | None = None

    def holds(self, tag: str, task_index: int) -> bool:
        """Return whether the scope contains a cell."""
        return self.tag in (None, tag) and self.task_index in (None, task_index)
