"""The value of a finished stage: as text in the store, and in the message of the next stage.

That of the last stage is the result of its row. Its text begins with ``_RESULT``, or with ``_UNAVAILABLE`` if it could
not be kept. No other value begins with these characters, so none is ever taken for a result.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from contextlib import suppress
from operator import is_
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery
from celery.result import ResultBase
from kombu import serialization
from kombu.utils import json as kombu_json

from celery_statemanager.integration.binding import IMMUTABLE, RESULT, Binding
from celery_statemanager.integration.outbox.envelope import (
    Envelope,
    body_of,
    content_of,
    decode_like,
    serializer_of,
    with_body,
)
from celery_statemanager.limits import MAX_RESULT_BYTES
from celery_statemanager.records import JobRef, Write
from celery_statemanager.stores.capabilities import Outbox
from celery_statemanager.texts import describe

MAX_BYTES = 512 * 1024
"""Maximum size of a value that is kept, so that the message of the next stage can be published again."""

PLACEHOLDER = "celery-statemanager:value-of-the-stage-before"
"""The argument that stands for the value in the stored message of a later stage."""

_RESULT, _UNAVAILABLE = "=", "!"

_encode_json = kombu_json.JSONEncoder().encode
"""Encodes as kombu's ``dumps``, which creates an encoder at each call."""

_JSON = "application/json"
_TOKEN = f'"{PLACEHOLDER}"'


class Unavailable(str):
    """The reason why a row has no result although it has finished."""

    __slots__ = ()


def pass_on(write: Write, binding: Binding, result: Any, most: int = MAX_RESULT_BYTES) -> str | None:
    """Set in a write that finishes a stage what the row keeps, and whether its next stage is due.

    Args:
        result: what the stage has returned; an ``Unavailable`` if that is not known.
        most: the maximum size of a result, in bytes.

    Returns: the value for the next stage as text; None if none takes it. Raises: kombu.exceptions.EncodeError.
    """
    if binding.next is None:
        write.value = "" if binding.stage else None  # nothing takes the value of the previous stage any more
        return None
    if binding.next == RESULT:
        write.value = result_to_text(result, most)
        return None
    write.next_is_due = True
    if binding.next == IMMUTABLE:
        return None
    text = _to_text(result, binding.next)
    write.value = text if len(text.encode()) <= MAX_BYTES else ""
    return text


def result_to_text(result: Any, most: int) -> str:
    """Return the text of the result of a row, as ``pass_on`` stores it. It is encoded as Celery's backends encode JSON.

    A result that cannot be kept does not fail its task: the text then contains the reason.
    """
    if isinstance(result, Unavailable):
        return f"{_UNAVAILABLE}{result}"
    try:
        value = result.as_tuple() if isinstance(result, ResultBase) else result  # type: ignore[attr-defined]
        text = _encode_json(value)
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:  # noqa: BLE001 - a value's own __json__ may raise anything
        return f"{_UNAVAILABLE}it cannot be encoded as JSON: {describe(error)}"
    if len(text) > most:  # the text is ASCII
        return f"{_UNAVAILABLE}{too_large(len(text), most)}"
    return f"{_RESULT}{text}"


def too_large(size: int, most: int) -> str:
    """Return the reason why a result of some bytes is not kept."""
    return f"it takes {size:,} bytes, more than statemanager_max_result_bytes = {most:,}"


def results_of(texts: Sequence[str]) -> list[Any]:
    """Return the results with these texts, with an ``Unavailable`` for each one that was not kept."""
    encoded = [text[1:] for text in texts if text[0] == _RESULT]
    if len(encoded) == len(texts):
        with suppress(Exception):  # then they are decoded one by one, which takes longer
            decoded: list[Any] = kombu_json.loads(f"[{','.join(encoded)}]")
            return decoded
    return list(map(_result_of, texts))


def _result_of(text: str) -> Any:
    if text[0] != _RESULT:
        return Unavailable(text[1:] if text[0] == _UNAVAILABLE else "its last stage has stored none")
    try:
        return kombu_json.loads(text[1:])
    except Exception as error:  # noqa: BLE001 - types that applications register are decoded by their code
        return Unavailable(f"it cannot be decoded: {describe(error)}")


def stage_value(store: Outbox, ref: JobRef, row: int) -> str | None:
    """Return the text of the value that the next stage of a row takes; None if it is not kept. Raises: StoreError."""
    text = store.get_value(ref, row)
    return None if text is None or text[0] in {_RESULT, _UNAVAILABLE} else text


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
