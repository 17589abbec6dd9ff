"""The status and the message for each outcome of a Celery task. Pure functions."""

from __future__ import annotations

from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError
from celery import Task
from celery.exceptions import Reject, Retry
from celery.utils.serialization import UnpickleableExceptionWrapper

from celery_statemanager.errors import StateError
from celery_statemanager.models import Status

_BY_KIND: dict[type[BaseException], Status] = {
    SoftTimeLimitExceeded: Status.TIMED_OUT,
    TimeLimitExceeded: Status.TIMED_OUT,
    WorkerLostError: Status.LOST,
    SystemExit: Status.LOST,
    Reject: Status.REJECTED,
}


def failure(error: BaseException) -> tuple[int, str]:
    """Return the status and the message of a task that raised an exception."""
    if isinstance(error, StateError):
        return error.code, error.message
    status = next((status for kind, status in _BY_KIND.items() if isinstance(error, kind)), Status.FAILED)
    return int(status), describe(error)


def is_requeued(task: Task[Any, Any], error: BaseException) -> bool:
    """Return whether Celery requeues the message of a task that exceeded its hard time limit."""
    acks = getattr(task, "acks_on_timeout", task.acks_on_failure_or_timeout)
    return isinstance(error, TimeLimitExceeded) and task.acks_late and not acks


def rejection(reason: Any, *, not_requeued: bool) -> str:
    """Return the state message for a ``Reject``.

    Args:
        not_requeued: whether the task asked for a requeue that is impossible: its message is already acknowledged, or
            there is none.
    """
    text = f"rejected: {reason}" if reason else "rejected"
    return f"{text}; not requeued: it has no unacknowledged message" if not_requeued else text


def describe(error: Any) -> str:
    """Return an error as ``ValueError: text``."""
    name, text = type(error).__name__, str(error)
    if isinstance(error, UnpickleableExceptionWrapper):
        name, text = error.exc_cls_name or name, ", ".join(map(str, error.exc_args or ()))
    return f"{name}: {text}" if text else name


def retry(reason: Any, retries: int, max_retries: int | None) -> str:
    """Return the message of a cell that waits for a retry.

    Args:
        reason: the ``Retry`` that was raised.
        retries: the number of earlier retries.
    """
    cause = reason.exc if isinstance(reason, Retry) and reason.exc is not None else None
    of = "" if max_retries is None else f" of {max_retries}"
    why = "" if cause is None else f": {cause if isinstance(cause, str) else describe(cause)}"
    return f"retry {retries + 1}{of}{why}"
