"""Messages that are kept so that they can be sent again when their worker is lost, and the policy that decides it."""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery, Task
from celery.canvas import Signature
from kombu.utils.json import dumps, loads

from celery_statemanager.errors import ConfigurationError
from celery_statemanager.integration.settings import POLICIES

logger = logging.getLogger(__name__)

MAX_BYTES = 65_536


def execution_to_json(task: Task[Any, Any]) -> str | None:
    """Return the message of the execution that is about to begin as JSON; None if it cannot be kept."""
    request = task.request
    signature = task.signature_from_request(
        request, tuple(request.args or ()), dict(request.kwargs or {}), retries=request.retries
    )
    return _to_json({"signature": dict(signature)})


def message_to_json(message: Any) -> str | None:
    """Return a message that a worker has received and not begun as JSON; None if it cannot be kept."""
    if message.content_type != "application/json":
        return None
    try:
        body = message.body if isinstance(message.body, str) else bytes(message.body).decode()
    except UnicodeDecodeError:
        return None
    headers = {**message.headers}
    compression = headers.pop("compression", None)  # the body was decompressed when it was received
    properties = {name: message.properties.get(name) for name in ("correlation_id", "reply_to", "priority")}
    where = {name: message.delivery_info.get(name) for name in ("exchange", "routing_key")}
    encoding = {"content_type": message.content_type, "content_encoding": message.content_encoding}
    encoding["compression"] = compression
    return _to_json({"body": body, "publish": {**properties, **where, **encoding, "headers": headers}})


def task_name(text: str) -> str:
    """Return the name of the task of a kept message."""
    kept = loads(text)
    return str(kept["signature"]["task"] if "signature" in kept else kept["publish"]["headers"]["task"])


def resend(app: Celery, text: str) -> None:
    """Publish a kept message once more. Raises: what the broker raises."""
    kept = loads(text)
    if "signature" in kept:
        Signature.from_dict(kept["signature"], app=app).apply_async(add_to_parent=False)
        return
    given = {name: value for name, value in kept["publish"].items() if value is not None}
    with app.producer_or_acquire() as producer:
        producer.publish(kept["body"], **given)


def _to_json(value: Any) -> str | None:
    try:
        text = str(dumps(value))
    except Exception:  # noqa: BLE001 - an argument's own __json__ may raise anything
        return None
    return text if len(text.encode("utf-8", "replace")) <= MAX_BYTES else None


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
