"""Decide whether a sweep (from a stored copy) or the broker can deliver the message of a lost worker again."""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from typing import Any

from celery import Celery, Task
from celery.exceptions import Reject

from celery_statemanager.integration import redelivery
from celery_statemanager.records import AT_BROKER


class Redelivers(Enum):
    """When a broker delivers the unacknowledged messages of a killed worker to another one."""

    AT_ONCE = "at once"
    """When the connection breaks."""
    LATER = "later"
    """After a timeout, such as the visibility timeout of Redis (an hour by default)."""
    NEVER = "never"
    """The message was removed when the worker received it."""


_AT_ONCE = {"amqp", "qpid"}
_NEVER = {"consul", "etcd", "filesystem", "memory", "mongodb", "pyro", "sql", "zookeeper"}


@lru_cache(maxsize=100)
def redelivers(app: Celery) -> Redelivers:
    """Return when the broker of an app delivers the messages of a killed worker again."""
    with app.connection_for_read() as connection:  # does not connect
        kind = connection.transport.driver_type
    return Redelivers.AT_ONCE if kind in _AT_ONCE else Redelivers.NEVER if kind in _NEVER else Redelivers.LATER


def copy_of_execution(task: Any, setting: str) -> str | None:
    """Return the message of the execution that is about to begin, for the case that its worker is lost.

    Returns: ``AT_BROKER`` if only the broker has it; None if there is no copy or the policy is to mark the row.
    """
    message = redelivery.detach(task.request)
    if task.request.is_eager or not redelivery.requeues(task, setting):
        return None
    at_broker = message is None and task.acks_late and redelivers(task.app) is not Redelivers.NEVER
    return AT_BROKER if at_broker else message


def copy_of_received(
    app: Celery, request: Any, setting: str, *, drops_duplicates: bool, is_held: bool = False
) -> str | None:
    """Return the message of a row that a worker has received and not begun, for the case that the worker is lost.

    The policy does not matter, because the row never ran. The row may run twice if both a sweep and the broker deliver
    its message. Therefore the broker alone delivers it if it does so at once, or if no veto drops a second delivery.

    Args:
        is_held: whether a live worker holds the message and cannot begin it. The broker then does not deliver it
            again.

    Returns: ``AT_BROKER`` if the broker delivers it again; None if there is no copy.
    """
    broker = redelivers(app)
    may_run_twice = drops_duplicates or redelivery.requeues(request.task, setting)
    waits = broker is Redelivers.LATER or is_held
    message = None
    if broker is Redelivers.NEVER or (waits and may_run_twice):
        message = redelivery.message_to_json(request.message, request.task.name)
    return AT_BROKER if message is None and broker is not Redelivers.NEVER else message


def deliver_later(task: Task[Any, Any], lease: float) -> None:
    """Publish the message of the current execution again, with a delay after which its cell may be free.

    Its delay is shorter than the broker's visibility timeout, because the broker would deliver each waiting copy twice.

    Raises: Reject – the broker failed and keeps the message.
    """
    options = task.app.conf.broker_transport_options or {}
    request = task.request
    try:
        task.signature_from_request(
            request,
            tuple(request.args or ()),
            dict(request.kwargs or {}),
            retries=request.retries,
            countdown=min(lease, float(options.get("visibility_timeout") or 3_600) / 2),
        ).apply_async(add_to_parent=False)
    except Exception as error:
        raise Reject(error, requeue=True) from error
