"""Messages that a retry or a replacement has changed. They are stored with the cell, not in the blocks of the job."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery

from celery_statemanager.integration.binding import HEADER, Binding, binding_of
from celery_statemanager.integration.outbox.envelope import (
    KEPT_PROPERTIES,
    Envelope,
    from_json,
    from_message,
    from_publication,
    publish,
    to_json,
)

MAX_BYTES = 65_536
"""Maximum size of a changed message that is stored with its cell."""

TOO_LARGE = "{}"
"""The text that is stored instead of a message that is too large or cannot be stored as JSON."""

ENVELOPE = "statemanager_message"
"""The key under which a worker's main process passes a message on; only what a request contains reaches a child."""


def attach(request: Any) -> None:
    """Pass a message of a worker's request that is not the stored one on to the process that runs it."""
    binding = binding_of(request.request_dict)
    if binding is not None and (binding.changed or binding.replacements):
        request.request_dict[ENVELOPE] = from_message(request.message, request.task.name)


def detach(request: Any) -> str | None:
    """Remove the message from the request of a running task, and return it as JSON; None if it is not changed."""
    (request.headers or {}).pop(ENVELOPE, None)  # Celery counts it among the headers that a retry sends again
    envelope = request.__dict__.pop(ENVELOPE, None)
    return None if envelope is None else kept(envelope)


def message_to_json(message: Any, task: str | None = None) -> str:
    """Return a received message as JSON, or ``TOO_LARGE``.

    Args:
        task: the name of its task, which messages of Celery's protocol 1 have in their bodies.
    """
    return kept(from_message(message, task))


def publication_to_json(body: Any, headers: dict[str, Any], arguments: dict[str, Any]) -> str:
    """Return a message that Celery has published as JSON, or ``TOO_LARGE``; see ``from_publication``."""
    try:
        return kept(from_publication(body, headers, arguments))
    except SoftTimeLimitExceeded:
        raise
    except Exception:  # noqa: BLE001 - an argument's own __json__ may raise anything
        return TOO_LARGE


def kept(envelope: Envelope) -> str:
    """Return a message as JSON, or ``TOO_LARGE``."""
    try:
        text = to_json(envelope)
    except SoftTimeLimitExceeded:
        raise
    except Exception:  # noqa: BLE001 - a header's own __json__ may raise anything
        return TOO_LARGE
    return text if len(text.encode("utf-8", "replace")) <= MAX_BYTES else TOO_LARGE


def mark_following(
    task: Any, binding: Binding, name: str, body: Any, headers: Any, place: dict[str, Any]
) -> str | None:
    """Mark the retry or the replacement of a running task as changed, if the stored message of the stage differs.

    Args:
        task, binding: the running task, and the cell that it runs for.
        name: the name of the task of the message.
        body: the body of the message, not encoded.
        place: where and how it is published, as Celery passes that to receivers of ``before_task_publish``.

    Returns: what is kept of it as JSON: the message, or ``TOO_LARGE``; only the eta of a retry, if the stored message
        is the same otherwise; None if it has no eta.
    """
    following = binding_of(headers)
    if following is None:
        return None
    is_retry = following.replacements == binding.replacements
    if not is_retry or following.replacements or is_changed(task.request, body, place.get("routing_key")):
        following = replace(following, changed=True)
        headers[HEADER] = following.to_header()
    if not following.changed:
        return eta_to_json(name, headers["eta"]) if headers.get("eta") else None
    names = ("exchange", "routing_key", "declare", *KEPT_PROPERTIES)
    arguments = {each: place[each] for each in names if place.get(each) is not None}
    arguments["serializer"] = getattr(task.app.tasks.get(name), "serializer", None) or task.app.conf.task_serializer
    return publication_to_json(body, {**headers}, arguments)


def is_changed(request: Any, body: Any, routing_key: str | None) -> bool:
    """Return whether a retry differs from the request of its task in more than the number of retries.

    Args:
        body: the body of its message, not encoded.
    """
    if not isinstance(body, tuple):  # protocol 1 has the number of retries in the body
        return True
    try:
        same = [*body[0]] == [*(request.args or ())] and {**body[1]} == {**(request.kwargs or {})}
        return not same or routing_key != (request.delivery_info or {}).get("routing_key")
    except SoftTimeLimitExceeded:
        raise
    except Exception:  # noqa: BLE001 - arguments may be of any type
        return True


def eta_to_json(task: str, eta: str) -> str:
    """Return as JSON what is kept of a retry that differs from the stored message by its eta only."""
    return to_json({"task": task, "eta": eta})


def publish_kept(app: Celery, text: str) -> None:
    """Publish a message that ``message_to_json`` has returned. Raises: what the broker raises."""
    publish(app, from_json(text))


def task_name(text: str) -> str:
    """Return the name of the task of a kept message."""
    return str(from_json(text).get("task"))
