"""Every error this package raises.

    StateManagerError
    ├── ConfigurationError          (ValueError)   a URL, a setting or an option that cannot be used
    ├── JobExists                   (ValueError)
    ├── JobNotFound                 (LookupError)
    │   └── JobNotCommitted                        the transaction in which the job was submitted is still open
    ├── TaskMismatch                (ValueError)   a Manager writes only its own row
    ├── ReadOnlyManager             (TypeError)
    ├── BeginRefused                               the cell or the job is done: nothing to begin
    ├── AttemptSuperseded                          a later attempt owns the cell, or this one has ended
    ├── JobCancelled
    ├── TaskStalled                                the task wrote nothing for longer than its ``stall_after``
    ├── StateError                                 raised by an application: fail the task with this code
    ├── SynchronizeFailed
    ├── SynchronizeTimeout          (TimeoutError)
    ├── WaitTimeout                 (TimeoutError)
    ├── SubscriptionLost            (ConnectionError)
    ├── SubmitFailed
    ├── TaskFailed                                 the first row of a job that has no result to get
    ├── ResultUnavailable           (LookupError)
    └── StoreError                                 the store refused or failed
        └── StoreUnavailable        (ConnectionError)
            └── StoreContended                     others changed the same record at each of many tries

``args`` are always the constructor's own arguments, and ``__str__`` builds the message.
Celery rebuilds an error from a result backend as ``cls(*error.args)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery_statemanager.models import State, Summary


_MAX_INDEXES_LENGTH = 200


def truncate(indexes: str) -> str:
    """Return printed indexes (``"3,17-20"``), cut after a whole range to fit into an error message."""
    if len(indexes) <= _MAX_INDEXES_LENGTH:
        return indexes
    return f"{indexes[:_MAX_INDEXES_LENGTH].rpartition(',')[0]} and more"


def install_hint(extra: str) -> str:
    """Return the command that installs an extra, for users of a package index and of a checkout."""
    return f'pip install "celery-statemanager[{extra}]"; in a checkout, pip install ".[{extra}]"'


_MOST_RUNS = 5
"""Runs that an error names."""


class StateManagerError(Exception):
    """Base of all errors of this package."""


class ConfigurationError(StateManagerError, ValueError):
    """A URL, a setting or an option is invalid. The message names the reason and the correct form."""


class StoreError(StateManagerError):
    """The store rejected an operation or failed. ``__cause__`` is the original error, if there is one."""


class StoreUnavailable(StoreError, ConnectionError):
    """The store cannot be reached, did not answer in time or refuses writes temporarily. A retry may succeed."""


class StoreContended(StoreUnavailable):
    """Other writers changed the same record at each try until the time was up; the store itself answers."""


class _JobIdentity(StateManagerError):
    """An error about one job, identified by ``job_id`` and, for reruns, ``run_token``."""

    def __init__(self, job_id: str, run_token: str | None = None) -> None:
        super().__init__(job_id, run_token)
        self.job_id = job_id
        self.run_token = run_token

    @property
    def _job(self) -> str:
        token = "" if self.run_token is None else f" (run token {self.run_token!r})"
        return f"job {self.job_id!r}{token}"


class JobExists(_JobIdentity, ValueError):
    """A job with this ``job_id`` and ``run_token`` already exists."""

    def __str__(self) -> str:
        return f"{self._job} already exists; open it, delete it, or choose another job_id or run_token"


class JobNotFound(_JobIdentity, LookupError):
    """The job was never created, was deleted, or was replaced by a newer job of the same name.

    Attributes:
        runs: the run tokens under which this job_id exists, as far as they were looked up: None for a run without one.
    """

    def __init__(self, job_id: str, run_token: str | None = None, runs: Sequence[str | None] = ()) -> None:
        super().__init__(job_id, run_token)
        self.runs = tuple(runs)
        if self.runs:
            self.args = (job_id, run_token, self.runs)

    def __str__(self) -> str:
        if self.runs:
            known = sorted(self.runs, key=lambda token: (token is not None, token or ""))
            tokens = ["one without run_token" if token is None else repr(token) for token in known]
            more = " and more" if len(tokens) > _MOST_RUNS else ""
            return (
                f"no {self._job} in this store; runs of it: {', '.join(tokens[:_MOST_RUNS])}{more}; "
                f"pass one of them as run_token, or use states.current_job() in a callback"
            )
        why = "never created, deleted, or replaced by a newer run"
        return f"no {self._job} in this store: {why}; check the job_id, the run_token and the store"


class JobNotCommitted(JobNotFound):
    """The transaction in which the job was submitted is still open, so the job does not exist yet.

    Attributes:
        using: the alias of the database of the transaction.
    """

    def __init__(self, job_id: str, run_token: str | None = None, using: str = "default") -> None:
        super().__init__(job_id, run_token)
        self.args = (job_id, run_token, using)
        self.using = using

    def __str__(self) -> str:
        return (
            f"{self._job} does not exist before the commit of the transaction on {self.using!r} in which it was "
            "submitted; ask after the transaction.atomic() block, or in transaction.on_commit()"
        )


class TaskMismatch(StateManagerError, ValueError):
    """A Manager bound to one row tried to write another row."""

    def __init__(self, job_id: str, own_index: int, task_index: int) -> None:
        super().__init__(job_id, own_index, task_index)
        self.job_id = job_id
        self.own_index = own_index
        self.task_index = task_index

    def __str__(self) -> str:
        return (
            f"task {self.own_index} may not write the state of task {self.task_index} in job {self.job_id!r}: "
            f"a Manager writes only its own row; open one with task_index={self.task_index}"
        )


class ReadOnlyManager(StateManagerError, TypeError):
    """A Manager without a row tried to write."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id

    def __str__(self) -> str:
        return f"this Manager of job {self.job_id!r} is read-only: open it with task_index=… to write"


class BeginRefused(StateManagerError):
    """An attempt cannot begin. ``reason`` is ``finished``, ``closed``, ``duplicate`` or ``stale``."""

    _TEXTS: ClassVar = {
        "finished": "it is already FINISHED; skip this delivery",
        "closed": "its job has settled; submit a new job with another job_id or run_token",
        "duplicate": "another delivery of the same task is running; skip this delivery",
        "stale": "a later delivery of the same task has begun; skip this delivery",
    }

    def __init__(self, job_id: str, tag: str, task_index: int, reason: str) -> None:
        super().__init__(job_id, tag, task_index, reason)
        self.job_id = job_id
        self.tag = tag
        self.task_index = task_index
        self.reason = reason

    def __str__(self) -> str:
        why = self._TEXTS.get(self.reason, self.reason)
        return f"task {self.task_index} of job {self.job_id!r} cannot begin {self.tag!r}: {why}"


class AttemptSuperseded(StateManagerError):
    """A write came from an attempt that is not the open attempt of its cell."""

    def __init__(self, job_id: str, tag: str, task_index: int, attempt: int | None, current: int) -> None:
        super().__init__(job_id, tag, task_index, attempt, current)
        self.job_id = job_id
        self.tag = tag
        self.task_index = task_index
        self.attempt = attempt
        self.current = current

    @property
    def forgotten(self) -> bool:
        """Whether the store has lost the begin of the attempt, for example because it was restored from a copy."""
        return self.attempt is not None and self.attempt > self.current

    def __str__(self) -> str:
        writer = "without an attempt" if self.attempt is None else f"by attempt {self.attempt}"
        if self.forgotten:
            why = f"the store has no record of that attempt, its latest is {self.current}"
        elif self.attempt == self.current:
            why = "that attempt has ended"
        else:
            why = f"attempt {self.current} owns the cell"
        return (
            f"job {self.job_id!r} rejected a write {writer} to {self.tag!r}, task {self.task_index}: {why}; "
            "stop working on this task"
        )


class JobCancelled(StateManagerError):
    """The job was cancelled. Stop working on it."""

    def __init__(self, job_id: str, reason: str | None = None) -> None:
        super().__init__(job_id, reason)
        self.job_id = job_id
        self.reason = reason

    def __str__(self) -> str:
        return f"job {self.job_id!r} was cancelled{f' ({self.reason})' if self.reason else ''}; stop working on it"


class TaskStalled(StateManagerError):
    """The task wrote nothing for longer than its ``stall_after``, and its policy ``on_stall`` is ``"stop"``.

    It is raised by the next write of the task, and ends the row as TIMED_OUT.
    """

    def __init__(self, job_id: str, tag: str, task_index: int, reason: str) -> None:
        super().__init__(job_id, tag, task_index, reason)
        self.job_id = job_id
        self.tag = tag
        self.task_index = task_index
        self.reason = reason

    def __str__(self) -> str:
        return f"job {self.job_id!r}, task {self.task_index}, {self.tag!r}: {self.reason}"


class StateError(StateManagerError):
    """Raised by an application to fail its task with one of its own error codes.

    Args:
        code: a negative int32.
        message: the message of the failed state.
    """

    def __init__(self, code: int, message: str = "") -> None:
        if isinstance(code, bool) or not isinstance(code, int) or not -(2**31) <= code < 0:
            raise ValueError(f"an error code must be a negative int32, not {code!r}")
        super().__init__(code, message)
        self.code = int(code)
        self.message = message

    def __str__(self) -> str:
        return f"{self.message or 'failed'} (status {self.code})"


class SynchronizeFailed(StateManagerError):
    """A row that a barrier waits for has failed. ``state`` is the state of that row."""

    def __init__(self, job_id: str, tag: str, status: int, state: State) -> None:
        super().__init__(job_id, tag, status, state)
        self.job_id = job_id
        self.tag = tag
        self.status = status
        self.state = state

    def __str__(self) -> str:
        row, code = getattr(self.state, "task_index", "?"), getattr(self.state, "status", "?")
        return (
            f"job {self.job_id!r} cannot reach {self.tag!r} >= {self.status}: task {row} failed with status {code} "
            f"({getattr(self.state, 'message', None) or 'no message'}); pass fail_fast=False to keep waiting"
        )


class SynchronizeTimeout(StateManagerError, TimeoutError):
    """A barrier was not reached in time.

    Attributes:
        states: one state per expected row, read when the time ran out.
        missing: the rows whose status is still too low, compressed (``"3,17-20"``).
    """

    def __init__(
        self,
        job_id: str,
        tag: str,
        status: int,
        missing: str,
        states: Sequence[State] = (),
        timeout: float | None = None,
    ) -> None:
        super().__init__(job_id, tag, status, missing, states, timeout)
        self.job_id = job_id
        self.tag = tag
        self.status = status
        self.missing = missing
        self.states = list(states)
        self.timeout = timeout

    def __str__(self) -> str:
        return (
            f"job {self.job_id!r} did not reach {self.tag!r} >= {self.status} within {self.timeout} s: "
            f"still waiting for task {truncate(self.missing)}; increase the timeout or inspect .states"
        )


class WaitTimeout(StateManagerError, TimeoutError):
    """A job did not settle in time. ``summary`` holds its progress at that time."""

    def __init__(self, job_id: str, timeout: float, summary: Summary | None = None) -> None:
        super().__init__(job_id, timeout, summary)
        self.job_id = job_id
        self.timeout = timeout
        self.summary = summary

    def __str__(self) -> str:
        return f"job {self.job_id!r} did not settle within {self.timeout} s and continues; wait again or cancel it"


class TaskFailed(StateManagerError):
    """A row or the body of a job has failed, so that it has no result.

    Attributes:
        task_index, tag: the row, and the stage that has not finished; -1 and ``body``, or ``body 2 of 3``, if it is the
            body.
        status, message: those of this stage.
    """

    def __init__(self, job_id: str, task_index: int, tag: str, status: int, message: str | None = None) -> None:
        super().__init__(job_id, task_index, tag, status, message)
        self.job_id = job_id
        self.task_index = task_index
        self.tag = tag
        self.status = status
        self.message = message

    def __str__(self) -> str:
        is_body, what = self.task_index < 0, "failed" if self.status < 0 else "has not finished"
        name, stage = (self.tag, "") if is_body else (f"task {self.task_index}", f" in {self.tag!r}")
        text = self.message or "no message"
        return f"{name} of job {self.job_id!r} {what}{stage} with status {self.status}: {text}"


class ResultUnavailable(StateManagerError, LookupError):
    """A job keeps no results, or not that of one row.

    Attributes:
        task_index: the row; None if the job keeps no results.
        reason: why there is none. It names the setting that allows a larger one.
    """

    def __init__(self, job_id: str, task_index: int | None, reason: str) -> None:
        super().__init__(job_id, task_index, reason)
        self.job_id = job_id
        self.task_index = task_index
        self.reason = reason

    def __str__(self) -> str:
        row = "" if self.task_index is None else f"task {self.task_index} of "
        return f"no result of {row}job {self.job_id!r}: {self.reason}"


class SubscriptionLost(StateManagerError, ConnectionError):
    """A subscription lost its connection and could not restore it. Subscribe again to continue."""

    def __init__(self, job_id: str, why: str) -> None:
        super().__init__(job_id, why)
        self.job_id = job_id
        self.why = why

    def __str__(self) -> str:
        return f"the subscription to job {self.job_id!r} is lost: {self.why}; subscribe again"


class SubmitFailed(StateManagerError):
    """The message of a member could not be made. No message was sent, and no job was created.

    In eager mode, the members before it have run, and the job is cancelled.

    Attributes:
        task_index: the member.
        why: the original error as text; the error itself is ``__cause__``.
        published: the number of members that have run, in eager mode; otherwise 0.
        job: the ``Job`` in eager mode, in the process that submitted it; otherwise None.
    """

    def __init__(self, job_id: str, task_index: int, why: str = "", published: int | None = None) -> None:
        super().__init__(job_id, task_index, why, published)
        self.job_id = job_id
        self.task_index = task_index
        self.why = why
        self.published = published or 0
        self.job: Any = None
        self._is_eager = published is not None

    def __reduce__(self) -> tuple[Any, ...]:
        """Omit ``job``, because its store cannot be pickled."""
        return type(self), self.args

    def __str__(self) -> str:
        why = f": {self.why}" if self.why else ""
        fate = (
            "the job is cancelled; correct the member, and submit them again under another job_id or run_token"
            if self._is_eager
            else "no message was sent, and no job was created; correct the member, and submit them again"
        )
        return f"submit of job {self.job_id!r} failed at member {self.task_index}{why}; {fate}"
