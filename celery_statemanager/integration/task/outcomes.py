"""The status and the message for each outcome of a Celery task.

No function here raises, whatever a task has raised. A handler that fails would leave its cell open.
"""

from __future__ import annotations

from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError
from celery import Task
from celery.exceptions import Reject, Retry
from celery.utils.serialization import UnpickleableExceptionWrapper

from celery_statemanager import texts
from celery_statemanager.errors import StateError
from celery_statemanager.limits import check_status
from celery_statemanager.models import Status
from celery_statemanager.texts import to_text

_BY_KIND: dict[type[BaseException], Status] = {
    SoftTimeLimitExceeded: Status.TIMED_OUT,
    TimeLimitExceeded: Status.TIMED_OUT,
    WorkerLostError: Status.LOST,
    SystemExit: Status.LOST,
    KeyboardInterrupt: Status.LOST,
    Reject: Status.REJECTED,
}


def failure(error: BaseException) -> tuple[int, str]:
    """Return the status and the message of a task that raised an exception."""
    own = _own_failure(error) if sets_status(error) else None
    if own is not None:
        return own
    status = next((status for kind, status in _BY_KIND.items() if is_a(error, kind)), Status.FAILED)
    return int(status), describe(error)


def sets_status(error: BaseException) -> bool:
    """Return whether an exception replaces the status that the application wrote."""
    return is_a(error, StateError)


def original(reported: BaseException, handled: BaseException | None) -> BaseException:
    """Return the exception that a task raised, if it is more specific than the one that Celery reports.

    Celery reports one that cannot be pickled in a wrapper with its name and arguments, or as an instance of a base
    class, without its name.

    Args:
        handled: the exception that is being handled.
    """
    if handled is None:
        return reported
    if is_a(reported, UnpickleableExceptionWrapper):
        has_text = type.__getattribute__(type(handled), "__str__") is not BaseException.__str__
        return handled if has_text or sets_status(handled) else reported
    return handled if is_a(handled, type(reported)) else reported


def is_requeued(task: Task[Any, Any], error: BaseException) -> bool:
    """Return whether Celery requeues the message of a task that exceeded its hard time limit."""
    acks = getattr(task, "acks_on_timeout", task.acks_on_failure_or_timeout)
    return is_a(error, TimeLimitExceeded) and task.acks_late and not acks


def asks_for_requeue(reject: Any) -> bool:
    """Return whether a ``Reject`` asks for the requeue of its message."""
    try:
        return bool(reject.requeue)
    except Exception:  # noqa: BLE001 - the value is the application's, and a subclass may not have set it
        return False


def rejection(reject: Any, *, not_requeued: bool) -> str:
    """Return the state message for a ``Reject``.

    Args:
        not_requeued: whether the task asked for a requeue that is impossible: its message is already acknowledged, or
            there is none.
    """
    text = texts.labelled("rejected", _reason(reject))
    return f"{text}; not requeued: it has no unacknowledged message" if not_requeued else text


def requeue(reject: Any) -> str:
    """Return the message of a cell whose task raised ``Reject`` with ``requeue=True``."""
    return texts.labelled("requeued by the task", _reason(reject))


def _reason(reject: Any) -> str:
    """Return the reason of a ``Reject`` as text; an empty one if it has none."""
    try:
        reason = reject.reason
    except Exception:  # noqa: BLE001 - as for the requeue
        return ""
    return "" if reason is None else to_text(reason)


def ignored(error: BaseException) -> str:
    """Return the state message for an ``Ignore`` that the application raised."""
    return texts.labelled("ignored", texts.error_text(error))


def describe(error: BaseException) -> str:
    """Return an error as ``ValueError: text``."""
    if is_a(error, UnpickleableExceptionWrapper):
        wrapper: Any = error
        return texts.labelled(to_text(wrapper.exc_cls_name), ", ".join(map(to_text, wrapper.exc_args or ())))
    return texts.describe(error)


def retry(reason: Any, retries: int, max_retries: int | None) -> str:
    """Return the message of a cell that waits for a retry.

    Args:
        reason: the ``Retry`` that was raised.
        retries: the number of earlier retries.
    """
    cause = reason.exc if is_a(reason, Retry) else None
    of = "" if max_retries is None else f" of {to_text(max_retries)}"
    why = "" if cause is None else describe(cause) if is_a(cause, BaseException) else to_text(cause)
    return texts.labelled(f"retry {retries + 1}{of}", why)


def _own_failure(error: Any) -> tuple[int, str] | None:
    """Return the code and the message of a ``StateError``; None if a subclass has no valid code."""
    try:
        code, message = check_status(error.code), error.message
    except Exception:  # noqa: BLE001 - a subclass may not have called __init__, or may compute them
        return None
    return (code, "" if message is None else to_text(message)) if code < 0 else None


def is_a(error: object, kind: type) -> bool:
    """Return whether an object is an instance of a class by its type, because its ``__class__`` may raise."""
    return type.__subclasscheck__(kind, type(error))
