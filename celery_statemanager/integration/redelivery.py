"""Messages that are kept so that they can be sent again when their worker is lost, and the policy that decides it."""

from __future__ import annotations

import base64
import logging
from typing import Any

from celery import Celery
from kombu.utils.json import dumps, loads

from celery_statemanager.errors import ConfigurationError
from celery_statemanager.integration.settings import POLICIES

logger = logging.getLogger(__name__)

MAX_BYTES = 65_536

ENVELOPE = "statemanager_message"
"""The key under which a worker's main process passes a message on; only what a request contains reaches a child."""

_PROPERTIES = ("correlation_id", "reply_to", "priority", "delivery_mode")
_DEATH = ("x-death", "x-first-death", "x-last-death")
"""Headers by which RabbitMQ detects cycles of dead-lettered messages."""


Envelope = dict[str, Any]
"""A message as it was received, with its encoded body: nothing decodes or encodes it again."""


def attach(request: Any, on_lost: str) -> None:
    """Pass the message of a worker's request on to the process that runs it, if a sweep may have to send it again."""
    if requeues(request.task, on_lost) and len(request.message.body) <= MAX_BYTES:
        request.request_dict[ENVELOPE] = _envelope(request.message, request.task.name)


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
    return _to_json(_envelope(message, task))


def _envelope(message: Any, task: str | None) -> Envelope:
    headers = {name: value for name, value in message.headers.items() if not name.startswith(_DEATH)}
    publish = {name: message.properties.get(name) for name in _PROPERTIES}
    publish |= {name: message.delivery_info.get(name) for name in ("exchange", "routing_key")}
    publish |= {"content_type": message.content_type, "content_encoding": message.content_encoding}
    publish["compression"] = headers.pop("compression", None)  # the body was decompressed when it was received
    body = message.body if isinstance(message.body, (str, bytes)) else bytes(message.body)
    return {"task": task or headers.get("task"), "body": body, "publish": {**publish, "headers": headers}}


def _to_json(envelope: Envelope) -> str | None:
    body = envelope["body"]
    try:
        text = body if isinstance(body, str) else body.decode()
        kept = {**envelope, "body": text}
    except UnicodeDecodeError:
        kept = {**envelope, "body": base64.b64encode(body).decode(), "base64": True}
    try:
        text = str(dumps(kept))
    except Exception:  # noqa: BLE001 - a header's own __json__ may raise anything
        return None
    return text if len(text.encode("utf-8", "replace")) <= MAX_BYTES else None


def task_name(text: str) -> str:
    """Return the name of the task of a kept message."""
    return str(loads(text)["task"])


def resend(app: Celery, text: str) -> None:
    """Publish a stored message again, as it was received. Raises: what the broker raises.

    No task class and no signal is called, because another trace, a lock or other headers would change the message.
    """
    kept = loads(text)
    given = {name: value for name, value in kept["publish"].items() if value is not None}
    body = base64.b64decode(kept["body"]) if "base64" in kept else kept["body"].encode()
    with app.producer_or_acquire() as producer:
        given["declare"] = _queues(app, given.get("exchange"), given.get("routing_key"))
        policy = {"retry": app.conf.task_publish_retry, "retry_policy": app.conf.task_publish_retry_policy}
        producer.publish(body, **policy, **given)


def _queues(app: Celery, exchange: str | None, routing_key: str | None) -> list[Any]:
    """Return the queue that a message came from, to declare it: a broker drops messages to a deleted queue."""
    try:
        return [app.amqp.queues[routing_key]] if routing_key and not exchange else []
    except KeyError:  # task_create_missing_queues is false
        return []


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
