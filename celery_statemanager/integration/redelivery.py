"""Messages that are kept so that they can be sent again when their worker is lost, and the policy that decides it."""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery

from celery_statemanager.errors import ConfigurationError
from celery_statemanager.integration.outbox.envelope import Envelope, from_json, from_message, publish, to_json
from celery_statemanager.integration.settings import POLICIES

logger = logging.getLogger(__name__)

MAX_BYTES = 65_536

ENVELOPE = "statemanager_message"
"""The key under which a worker's main process passes a message on; only what a request contains reaches a child."""


def attach(request: Any, on_lost: str) -> None:
    """Pass the message of a worker's request on to the process that runs it, if a sweep may have to send it again."""
    if requeues(request.task, on_lost) and len(request.message.body) <= MAX_BYTES:
        request.request_dict[ENVELOPE] = from_message(request.message, request.task.name)


def detach(request: Any) -> str | None:
    """Remove the message from the request of a running task, and return it as JSON; None if it cannot be kept."""
    (request.headers or {}).pop(ENVELOPE, None)  # Celery counts it among the headers that a retry sends again
    envelope = request.__dict__.pop(ENVELOPE, None)
    return None if envelope is None else _to_json(envelope)


def message_to_json(message: Any, task: str | None = None) -> str | None:
    """Return a received message as JSON; None if it cannot be kept.

    Args:
        task: the name of its task, which messages of Celery's protocol 1 have in their bodies.
    """
    return _to_json(from_message(message, task))


def _to_json(envelope: Envelope) -> str | None:
    try:
        text = to_json(envelope)
    except Exception:  # noqa: BLE001 - a header's own __json__ may raise anything
        return None
    return text if len(text.encode("utf-8", "replace")) <= MAX_BYTES else None


def task_name(text: str) -> str:
    """Return the name of the task of a kept message."""
    return str(from_json(text)["task"])


def resend(app: Celery, text: str) -> None:
    """Publish a stored message again, as it was received. Raises: what the broker raises."""
    publish(app, from_json(text))


def requeues(task: Any, setting: str) -> bool:
    """Return whether a lost message of this task is sent again; an invalid policy of the task is ignored."""
    own = getattr(task, "on_lost", None)
    policy = own if own in POLICIES else setting
    return policy == "requeue" or (policy == "auto" and bool(task.acks_late))


def check(name: str, on_lost: Any) -> None:
    """Raise ``ConfigurationError`` for an invalid policy of the task of this name."""
    if on_lost not in (None, *POLICIES):
        raise ConfigurationError(
            f"task {name!r}: on_lost must be one of {', '.join(POLICIES)}, not {on_lost!r}: correct it where the task "
            "is declared, or remove it to use statemanager_on_lost"
        )


def check_task(task: Any) -> None:
    """Raise ``ConfigurationError`` for a task with an invalid policy; None stands for a task unknown to the app."""
    if task is not None:
        check(task.name, getattr(task, "on_lost", None))


def log_invalid_policies(app: Celery) -> None:
    """Log the tasks of an app whose policy is invalid.

    They are only logged, because Celery registers every shared task of a process with all its apps.
    """
    for name in sorted(app.tasks):
        try:
            check_task(app.tasks[name])
        except ConfigurationError as error:
            logger.error(  # noqa: TRY400 - a traceback would not help
                "%s; until then statemanager_on_lost applies to it, and submit rejects it", error
            )
