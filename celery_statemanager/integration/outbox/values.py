"""The value that a stage of a chain passes to the next one: as text in the store, and in the message of that stage."""

from __future__ import annotations

import base64
from operator import is_
from typing import Any

from celery import Celery
from kombu import serialization

from celery_statemanager.integration.binding import IMMUTABLE, Binding
from celery_statemanager.integration.outbox.envelope import (
    Envelope,
    body_of,
    content_of,
    decode_like,
    serializer_of,
    with_body,
)
from celery_statemanager.records import Write

MAX_BYTES = 512 * 1024
"""Maximum size of a value that is kept, so that the message of the next stage can be published again."""

PLACEHOLDER = "celery-statemanager:value-of-the-stage-before"
"""The argument that stands for the value in the stored message of a later stage."""

_JSON = "application/json"
_TOKEN = f'"{PLACEHOLDER}"'


def pass_on(write: Write, binding: Binding, result: Any) -> str | None:
    """Set in a write that finishes a stage what the row keeps, and whether its next stage is due.

    Returns: the value for the next stage as text; None if none takes it. Raises: kombu.exceptions.EncodeError.
    """
    if binding.next is None:
        write.value = "" if binding.stage else None  # nothing takes the value of the previous stage any more
        return None
    write.next_is_due = True
    if binding.next == IMMUTABLE:
        return None
    text = _to_text(result, binding.next)
    write.value = text if len(text.encode()) <= MAX_BYTES else ""
    return text


def with_value(app: Celery, envelope: Envelope, text: str) -> Envelope:
    """Return the message of a stage with the value of the previous stage. Raises: ContentDisallowed; EncodeError."""
    if envelope["publish"]["content_type"] == _JSON:
        body = body_of(envelope)
        return with_body(envelope, str(body).replace(_TOKEN, text))
    value = decode_like(app, envelope, base64.b64decode(text))
    content = _replaced(content_of(app, envelope), value)
    return with_body(envelope, serialization.dumps(content, serializer=serializer_of(envelope))[2])


def takes_value(envelope: Envelope, *, is_immutable: bool = False) -> bool:
    """Return whether a message contains the place for the value of the previous stage.

    Args:
        is_immutable: whether the signature of the stage takes no value. Only bodies in JSON show this.
    """
    is_json = envelope["publish"]["content_type"] == _JSON
    return _TOKEN in envelope["body"] if is_json else not is_immutable


def _to_text(value: Any, serializer: str) -> str:
    content_type, _, data = serialization.dumps(value, serializer=serializer)
    if content_type == _JSON:
        return str(data)
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


def is_placeholder(content: Any) -> bool:
    """Return whether an argument stands for the value of the previous stage. Arguments may be of any type."""
    return isinstance(content, str) and content == PLACEHOLDER


def _replaced(content: Any, value: Any) -> Any:
    """Return a content with the value in all places. What contains none stays the same object, of any type."""
    if is_placeholder(content):
        return value
    if type(content) in {list, tuple}:
        replaced = type(content)(_replaced(each, value) for each in content)
        return content if all(map(is_, content, replaced)) else replaced
    if type(content) is dict:
        changed = {key: _replaced(each, value) for key, each in content.items()}
        return content if all(changed[key] is each for key, each in content.items()) else changed
    return content
