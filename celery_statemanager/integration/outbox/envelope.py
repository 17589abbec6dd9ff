"""A message as JSON: its encoded body, and all that the broker needs to deliver it as Celery would have."""

from __future__ import annotations

import base64
from datetime import datetime, timedelta, timezone
from typing import Any

from celery import Celery
from celery.utils.time import maybe_make_aware
from kombu import Queue, serialization
from kombu.serialization import dumps as encode
from kombu.serialization import loads as decode
from kombu.serialization import prepare_accept_content
from kombu.utils.json import JSONEncoder, loads

Envelope = dict[str, Any]
"""A message of a task. Nothing decodes or encodes its body again.

Keys: ``task``, its name; ``body``, as text; ``base64``, set if the body is not UTF-8; ``publish``, the arguments of
``kombu.Producer.publish``; ``queue``, the name of the queue to declare; ``eta_after`` and ``expires_after``, seconds
from each publication.
"""

KEPT_PROPERTIES = ("correlation_id", "reply_to", "priority", "delivery_mode")
_DEATH = ("x-death", "x-first-death", "x-last-death")
"""Headers by which RabbitMQ detects cycles of dead-lettered messages."""
_NOT_KEPT = frozenset({"serializer", "retry", "retry_policy", "declare", "expiration", "headers"})


def from_message(message: Any, task: str | None) -> Envelope:
    """Return a message that a worker has received.

    Args:
        task: the name of its task, which messages of Celery's protocol 1 have in their bodies.
    """
    headers = {name: value for name, value in message.headers.items() if not name.startswith(_DEATH)}
    publish = {name: message.properties.get(name) for name in KEPT_PROPERTIES}
    publish |= {name: message.delivery_info.get(name) for name in ("exchange", "routing_key")}
    publish |= {"content_type": message.content_type, "content_encoding": message.content_encoding}
    publish["compression"] = headers.pop("compression", None)  # the body was decompressed when it was received
    body = message.body if isinstance(message.body, (str, bytes)) else bytes(message.body)
    return _envelope(task or headers.get("task"), body, {**publish, "headers": headers})


def from_publication(body: Any, headers: dict[str, Any], arguments: dict[str, Any]) -> Envelope:
    """Return a message that Celery was about to publish.

    Args:
        arguments: those of ``kombu.Producer.publish``.

    Raises: kombu.exceptions.EncodeError.
    """
    content_type, content_encoding, encoded = encode(body, serializer=arguments.get("serializer"))
    publish = {name: value for name, value in arguments.items() if name not in _NOT_KEPT and value is not None}
    exchange = publish.get("exchange")
    publish["exchange"] = getattr(exchange, "name", exchange)
    publish |= {"content_type": content_type, "content_encoding": content_encoding, "headers": headers}
    envelope = _envelope(headers.get("task") or body["task"], encoded, publish)
    queues = [each.name for each in arguments.get("declare") or () if isinstance(each, Queue)]
    return {**envelope, "queue": queues[0]} if queues else envelope


def _envelope(task: str | None, body: str | bytes, publish: dict[str, Any]) -> Envelope:
    return {"task": task, **body_fields(body), "publish": publish}


def body_fields(body: str | bytes) -> dict[str, Any]:
    """Return the fields of a message that contain its encoded body."""
    if isinstance(body, str):
        return {"body": body}
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body": base64.b64encode(body).decode(), "base64": True}


def to_json(value: Envelope | list[Envelope] | str) -> str:
    """Return a message, several, or one of its texts as JSON. Raises: any error of a header's own ``__json__``."""
    return _encoder.encode(value)


_encoder = JSONEncoder()
"""Shared, because ``json.dumps`` creates an encoder in each call."""


def from_json(text: str) -> Envelope:
    """Return the message in the text of ``to_json``."""
    envelope: Envelope = loads(text)
    return envelope


def messages_from_json(text: str) -> list[Envelope]:
    """Return the messages in the text of ``to_json``."""
    messages: list[Envelope] = loads(text)
    return messages


def content_of(app: Celery, envelope: Envelope) -> Any:
    """Decode the body of a message. Raises: kombu.exceptions.ContentDisallowed – ``accept_content`` forbids it."""
    return decode_like(app, envelope, body_of(envelope))


def decode_like(app: Celery, envelope: Envelope, data: str | bytes) -> Any:
    """Decode data that is encoded as the body of a message is. Raises: kombu.exceptions.ContentDisallowed."""
    given, accept = envelope["publish"], prepare_accept_content(app.conf.accept_content)
    return decode(data, given["content_type"], given["content_encoding"], accept=accept)


def queue_name(envelope: Envelope) -> str | None:
    """Return the name of the queue of a message; None if only the broker knows where its exchange leads."""
    given = envelope["publish"]
    name = envelope.get("queue") or (None if given.get("exchange") else given.get("routing_key"))
    return name or None


def serializer_of(envelope: Envelope) -> str:
    """Return the name of the serializer of a message."""
    registry: Any = serialization.registry  # type: ignore[attr-defined] # incomplete stubs
    name: str = registry.type_to_name[envelope["publish"]["content_type"]]
    return name


def body_of(envelope: Envelope) -> str | bytes:
    """Return the encoded body of a message."""
    text: str = envelope["body"]
    return base64.b64decode(text) if "base64" in envelope else text


def with_body(envelope: Envelope, body: str | bytes) -> Envelope:
    """Return a message with another encoded body."""
    return {**_envelope(envelope["task"], body, envelope["publish"]), **_others(envelope)}


def with_task_id(app: Celery, envelope: Envelope, task_id: str) -> Envelope:
    """Return a message of the same task under another Celery task id, without an expiry that has passed.

    Raises: kombu.exceptions.ContentDisallowed, of a message of Celery's protocol 1, which has the id in its body.
    """
    given = envelope["publish"]
    if "id" in given["headers"]:
        is_root = given["headers"].get("root_id") == given["headers"]["id"]
        envelope = with_headers(envelope, id=task_id, **({"root_id": task_id} if is_root else {}))
        if _has_passed(given["headers"].get("expires")):
            envelope = with_headers(envelope, expires=None)
    else:
        content = content_of(app, envelope)
        expires = None if _has_passed(content.get("expires")) else content.get("expires")
        content = {**content, "id": task_id, "expires": expires}
        envelope = with_body(envelope, encode(content, serializer=serializer_of(envelope))[2])
    return {**envelope, "publish": {**envelope["publish"], "correlation_id": task_id}}


def _has_passed(moment: str | None) -> bool:
    return moment is not None and maybe_make_aware(datetime.fromisoformat(moment)) < datetime.now(timezone.utc)


def with_headers(envelope: Envelope, **headers: Any) -> Envelope:
    """Return a message with further headers."""
    given = envelope["publish"]
    return {**envelope, "publish": {**given, "headers": {**given["headers"], **headers}}}


def _others(envelope: Envelope) -> Envelope:
    return {name: envelope[name] for name in ("queue", "eta_after", "expires_after") if name in envelope}


def publish(app: Celery, envelope: Envelope, producer: Any = None) -> None:
    """Publish a message. Raises: what the broker raises.

    No task class and no signal is called, because another trace, a lock or other headers would change the message.
    """
    given = {name: value for name, value in envelope["publish"].items() if value is not None}
    given["headers"] = {**given["headers"], **_times(app, envelope)}
    body = body_of(envelope)
    body = body.encode() if isinstance(body, str) else body
    policy = {"retry": app.conf.task_publish_retry, "retry_policy": app.conf.task_publish_retry_policy}
    with app.producer_or_acquire(producer) as sender:
        sender.publish(body, declare=_queues(app, envelope), **policy, **given)


def _times(app: Celery, envelope: Envelope) -> dict[str, str]:
    """Return the headers of times that count from this publication."""
    return {
        header: _after(app, envelope[key])
        for header, key in (("eta", "eta_after"), ("expires", "expires_after"))
        if key in envelope
    }


def _after(app: Celery, seconds: float) -> str:
    moment: datetime = maybe_make_aware(app.now() + timedelta(seconds=seconds), tz=app.timezone)
    return moment.isoformat()


def _queues(app: Celery, envelope: Envelope) -> list[Any]:
    """Return the queue of a message, to declare it: a broker drops messages to a queue that was deleted."""
    name = queue_name(envelope)
    try:
        return [] if name is None else [app.amqp.queues[name]]
    except KeyError:  # task_create_missing_queues is false
        return []
