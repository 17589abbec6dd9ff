"""Messages kept to be sent again when their worker dies: JSON text only."""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery, Task
from celery.canvas import Signature
from kombu.utils.json import dumps, loads

from celery_statemanager.errors import ConfigurationError
from celery_statemanager.integration.settings import POLICIES

MAX_BYTES = 65_536


def of_execution(task: Task[Any, Any]) -> str | None:
    """Give the message of the execution that is about to begin; None if it cannot be kept."""
    request = task.request
    signature = task.signature_from_request(
        request, tuple(request.args or ()), dict(request.kwargs or {}), retries=request.retries
    )
    return _text({"signature": dict(signature)})


def of_message(message: Any) -> str | None:
    """Give a message that a worker has received and not begun; None if it cannot be kept."""
    if message.content_type != "application/json":
        return None
    try:
        body = message.body if isinstance(message.body, str) else bytes(message.body).decode()
    except UnicodeDecodeError:
        return None
    headers = {**message.headers}
    compression = headers.pop("compression", None)  # undone as it was received
    properties = {name: message.properties.get(name) for name in ("correlation_id", "reply_to", "priority")}
    where = {name: message.delivery_info.get(name) for name in ("exchange", "routing_key")}
    encoding = {"content_type": message.content_type, "content_encoding": message.content_encoding}
    encoding["compression"] = compression
    return _text({"body": body, "publish": {**properties, **where, **encoding, "headers": headers}})


def task_of(text: str) -> str:
    """Name the task of a kept message."""
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


def _text(value: Any) -> str | None:
    try:
        text = str(dumps(value))
    except (TypeError, ValueError):
        return None
    return text if len(text.encode("utf-8", "replace")) <= MAX_BYTES else None


logger = logging.getLogger(__name__)


def requeues(task: Any, setting: str) -> bool:
    """Whether a lost message of this task is to be sent again; a policy that does not exist is passed over."""
    own = getattr(task, "on_lost", None)
    policy = own if own in POLICIES else setting
    return policy == "requeue" or (policy == "auto" and bool(task.acks_late))


def check(name: str, on_lost: Any) -> None:
    """Refuse a policy that does not exist. Raises: ConfigurationError."""
    if on_lost not in (None, *POLICIES):
        raise ConfigurationError(
            f"task {name!r}: on_lost is one of {', '.join(POLICIES)}, not {on_lost!r}: correct it where the task is "
            "declared, or leave it out to go by statemanager_on_lost"
        )


def check_task(task: Any) -> None:
    """Refuse a task whose policy does not exist; None is one that the app does not know. Raises: ConfigurationError."""
    if task is not None:
        check(task.name, getattr(task, "on_lost", None))


def tell(app: Celery) -> None:
    """Log which of an app's tasks have a policy that does not exist.

    No more than that: Celery gives an app all decorated tasks of its process, its own or not.
    """
    for name in sorted(app.tasks):
        try:
            check_task(app.tasks[name])
        except ConfigurationError as error:
            logger.error("%s; until then it goes by that, and submit refuses it", error)  # noqa: TRY400 - no bug of ours
