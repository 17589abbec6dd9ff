"""Every error this package raises.

    StateManagerError
    ├── ConfigurationError          (ValueError)   a URL, a setting or an option that cannot be used
    ├── JobExists                   (ValueError)
    ├── JobNotFound                 (LookupError)
    ├── TaskMismatch                (ValueError)   a Manager writes only its own row
    ├── ReadOnlyManager             (TypeError)
    ├── BeginRefused                               the cell or the job is done: nothing to begin
    ├── AttemptSuperseded                          a later attempt owns the cell, or this one has ended
    ├── JobCancelled
    ├── StateError                                 raised by an application: fail the task with this code
    ├── SynchronizeFailed
    ├── SynchronizeTimeout          (TimeoutError)
    ├── WaitTimeout                 (TimeoutError)
    ├── SubscriptionLost            (ConnectionError)
    ├── SubmitFailed
    └── StoreError                                 the store refused or failed
        └── StoreUnavailable        (ConnectionError)
            └── StoreContended                     others changed the same record at each of many tries

``args`` are always the constructor's own arguments and the text is made in ``__str__``, because
Celery rebuilds an error that came through a result backend as ``cls(*error.args)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery_statemanager.models import State, Summary


_ROOM = 200


def truncate(indexes: str) -> str:
    """Give what a message has room for of printed indexes, of which there may be millions."""
    if len(indexes) <= _ROOM:
        return indexes
    return f"{indexes[:_ROOM].rpartition(',')[0]} and more"


class StateManagerError(Exception):
    """Base of all errors of this package."""


class ConfigurationError(StateManagerError, ValueError):
    """A URL, a setting or an option cannot be used; the text says why and what to write instead."""


class StoreError(StateManagerError):
    """The store refused or failed; ``__cause__`` is the original error where there is one."""


class StoreUnavailable(StoreError, ConnectionError):
    """The store cannot be reached, or did not answer in time; trying again may help."""


class StoreContended(StoreUnavailable):
    """Other writers changed the same record at each try until the time was up; the store itself answers."""


class _JobIdentity(StateManagerError):
    """An error about one job: ``job_id`` and, for reruns, ``run_token``."""

    def __init__(self, job_id: str, run_token: str | None = None) -> None:
        super().__init__(job_id, run_token)
        self.job_id = job_id
        self.run_token = run_token

    @property
    def _job(self) -> str:
        token = "" if self.run_token is None else f" (run token {self.run_token!r})"
        return f"job {self.job_id!r}{token}"


class JobExists(_JobIdentity, ValueError):
    """A job of this name is kept already."""

    def __str__(self) -> str:
        return f"{self._job} exists; open it, delete it, or give a new job_id or run_token"


class JobNotFound(_JobIdentity, LookupError):
    """No such job: never created, deleted, or replaced by a newer one of the same name."""

    def __str__(self) -> str:
        why = "never created, deleted, or replaced by a newer run"
        return f"no {self._job} in this store: {why}; check the job_id, the run_token and the store"


class TaskMismatch(StateManagerError, ValueError):
    """A Manager bound to one row was told to write another."""

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
    """A Manager without a row was told to write."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id

    def __str__(self) -> str:
        return f"this Manager of job {self.job_id!r} only reads: open it with task_index=… to write"


class BeginRefused(StateManagerError):
    """A cell cannot be begun: ``reason`` is ``finished``, ``closed``, ``duplicate`` or ``stale``."""

    _TEXTS: ClassVar = {
        "finished": "it is FINISHED already, and nothing is left to do",
        "closed": "its job has settled; a job of another job_id or run_token starts anew",
        "duplicate": "another delivery of it is running; leave it to that one",
        "stale": "a later delivery of it was begun; leave it to that one",
    }

    def __init__(self, job_id: str, tag: str, task_index: int, reason: str) -> None:
        super().__init__(job_id, tag, task_index, reason)
        self.job_id = job_id
        self.tag = tag
        self.task_index = task_index
        self.reason = reason

    def __str__(self) -> str:
        why = self._TEXTS.get(self.reason, self.reason)
        return f"task {self.task_index} of job {self.job_id!r} may not begin {self.tag!r}: {why}"


class AttemptSuperseded(StateManagerError):
    """A write came from an attempt that is no longer the open one of its cell."""

    def __init__(self, job_id: str, tag: str, task_index: int, attempt: int | None, current: int) -> None:
        super().__init__(job_id, tag, task_index, attempt, current)
        self.job_id = job_id
        self.tag = tag
        self.task_index = task_index
        self.attempt = attempt
        self.current = current

    def __str__(self) -> str:
        who = "a write without attempt" if self.attempt is None else f"attempt {self.attempt}"
        what = f"{who} of {self.tag!r}, task {self.task_index}, job {self.job_id!r}"
        why = "that attempt has ended" if self.attempt == self.current else f"attempt {self.current} owns the cell"
        return f"{what} was refused: {why}; stop working for it"


class JobCancelled(StateManagerError):
    """The job was cancelled; stop working for it."""

    def __init__(self, job_id: str, reason: str | None = None) -> None:
        super().__init__(job_id, reason)
        self.job_id = job_id
        self.reason = reason

    def __str__(self) -> str:
        return f"job {self.job_id!r} was cancelled, stop working for it" + (f": {self.reason}" if self.reason else "")


class StateError(StateManagerError):
    """Raised by an application to fail its task with a status code of its own.

    Args:
        code: a negative int32.
        message: kept as the state's message.
    """

    def __init__(self, code: int, message: str = "") -> None:
        if isinstance(code, bool) or not isinstance(code, int) or not -(2**31) <= code < 0:
            raise ValueError(f"an error code is a negative int32, not {code!r}")
        super().__init__(code, message)
        self.code = int(code)
        self.message = message

    def __str__(self) -> str:
        return f"{self.message or 'failed'} (status {self.code})"


class SynchronizeFailed(StateManagerError):
    """A row that a barrier waits for has failed; ``state`` is that row's state."""

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
            f"({getattr(self.state, 'message', None) or 'no message'}); fail_fast=False waits on"
        )


class SynchronizeTimeout(StateManagerError, TimeoutError):
    """A barrier was not reached in time.

    Attributes:
        states: one state per expected row, as they were when time ran out.
        missing: the rows below the status, compressed (``"3,17-20"``).
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
            f"waiting for task {truncate(self.missing)}; wait longer, or look at .states for what became of them"
        )


class WaitTimeout(StateManagerError, TimeoutError):
    """A job had not settled in time; ``summary`` says how far it was."""

    def __init__(self, job_id: str, timeout: float, summary: Summary | None = None) -> None:
        super().__init__(job_id, timeout, summary)
        self.job_id = job_id
        self.timeout = timeout
        self.summary = summary

    def __str__(self) -> str:
        return f"job {self.job_id!r} had not settled after {self.timeout} s; it goes on, wait again or cancel it"


class SubscriptionLost(StateManagerError, ConnectionError):
    """A subscription could not be healed; subscribe again to read on."""

    def __init__(self, job_id: str, why: str) -> None:
        super().__init__(job_id, why)
        self.job_id = job_id
        self.why = why

    def __str__(self) -> str:
        return f"the subscription to job {self.job_id!r} is lost: {self.why}; subscribe again"


class SubmitFailed(StateManagerError):
    """Publishing broke off; the job was cancelled.

    Attributes:
        published: messages sent before it broke off.
        total: the job's number of rows.
        why: what it was that broke it off; ``__cause__`` is the error itself.
        job: the job, where this is the process that submitted it.
    """

    def __init__(self, job_id: str, published: int, total: int, why: str = "") -> None:
        super().__init__(job_id, published, total, why)
        self.job_id = job_id
        self.published = published
        self.total = total
        self.why = why
        self.job: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the job, which holds a store, behind."""
        return type(self), self.args

    def __str__(self) -> str:
        return (
            f"submit of job {self.job_id!r} failed after {self.published} of {self.total} messages"
            f"{f': {self.why}' if self.why else ''}; the job is cancelled, submit another"
        )
