"""Messages kept to be sent again when their worker dies: JSON text only."""

from __future__ import annotations

from typing import Any

from celery import Celery, Task
from celery.canvas import Signature
from kombu.utils.json import dumps, loads

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
