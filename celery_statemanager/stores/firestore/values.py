"""Firestore values and Python values. Pure.

The protocol buffer classes are used bare: their proto-plus wrappers cost more time than the rest of a write.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any

from google.cloud.firestore_v1.types import document
from google.type.latlng_pb2 import LatLng as Place

from celery_statemanager.codec import rfc3339
from celery_statemanager.records import to_datetime

Value = document.Value.pb()

_INT64 = range(-(2**63), 2**63)
_DEEPEST = 18
_LONGEST_PATH = 700
"""Bytes of the keys that lead to a value; Firestore allows 1,500, joined by dots and with what it quotes escaped."""


class Moment(int):
    """Microseconds since the epoch that are kept as a timestamp."""


def encode(value: Any) -> Any:
    """Give a Firestore value; what it cannot hold was refused by ``is_native`` before."""
    made = Value()
    _fill(made, value)
    return made


_PLAIN = {str: "string_value", int: "integer_value", bool: "boolean_value", float: "double_value"}


def _fill(made: Any, value: Any) -> None:
    """Set a new value in its place: to make it elsewhere and copy it takes twice as long."""
    if (plain := _PLAIN.get(type(value))) is not None:
        setattr(made, plain, value)
    elif value is None:
        made.null_value = 0
    elif isinstance(value, Moment):
        made.timestamp_value.seconds, rest = divmod(value, 1_000_000)
        made.timestamp_value.nanos = rest * 1_000
    elif isinstance(value, (list, tuple)):
        made.array_value.SetInParent()
        values = made.array_value.values
        for inner in value:
            _fill(values.add(), inner)
    elif isinstance(value, Mapping):
        made.map_value.SetInParent()
        fill_fields(made.map_value, value)
    else:  # of a class of its own, as ``Status`` is
        setattr(made, next(name for kind, name in _PLAIN.items() if isinstance(value, kind)), value)


def fill_fields(made: Any, value: Mapping[str, Any]) -> None:
    """Set the fields of a new map or document."""
    fields = made.fields
    for key, inner in value.items():
        _fill(fields[key], inner)


def decode(value: Any) -> Any:
    """Read a Firestore value; keys of maps come in code-point order, timestamps as ``Moment``."""
    kind = value.WhichOneof("value_type")
    if kind in {None, "null_value"}:
        return None
    if kind == "timestamp_value":
        return microseconds(value.timestamp_value)
    if kind == "map_value":
        return decoded(value.map_value.fields)
    if kind == "array_value":
        return [decode(inner) for inner in value.array_value.values]
    return getattr(value, kind)


def decoded(fields: Any) -> dict[str, Any]:
    """Read the fields of a document or a map."""
    return {key: decode(fields[key]) for key in sorted(fields)}


def microseconds(stamp: Any) -> Moment:
    """Read a protocol buffer timestamp."""
    return Moment(stamp.seconds * 1_000_000 + stamp.nanos // 1_000)


def is_native(value: Any, depth: int = 0, path: int = 0) -> bool:
    """Whether Firestore holds a JSON value as it is.

    Not: arrays in arrays, integers beyond 64 bits, empty or reserved keys, deep nesting, long paths of keys.

    Args:
        path: bytes of the keys above it.
    """
    if isinstance(value, bool) or value is None or isinstance(value, (float, str)):
        return True
    if isinstance(value, int):
        return value in _INT64
    if depth >= _DEEPEST:
        return False
    if isinstance(value, list):
        return all(not isinstance(inner, list) and is_native(inner, depth + 1, path) for inner in value)
    paths = {key: path + len(key.encode()) for key in value}
    return all(
        _is_key(key) and paths[key] <= _LONGEST_PATH and is_native(inner, depth + 1, paths[key])
        for key, inner in value.items()
    )


def _is_key(key: str) -> bool:
    return len(key) > 0 and not re.fullmatch(r"__.*__", key, re.DOTALL)


def payload_fields(payload: str | None) -> dict[str, Any]:
    """Give the fields of a payload: a native map or, where Firestore cannot hold it, its text in ``payloadJSON``."""
    if payload is None:
        return {"payload": None}
    value = json.loads(payload)
    return {"payload": value} if is_native(value) else {"payload": None, "payloadJSON": payload}


def payload_of(fields: Mapping[str, Any]) -> str | None:
    """Read what ``payload_fields`` gave, or a map that another writer made."""
    text = fields.get("payloadJSON")
    if text is not None:
        return str(text)
    value = fields.get("payload")
    return None if value is None else json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    """Spell in JSON what else another writer may have put in a payload: times, bytes (as Go does), places."""
    if isinstance(value, Moment):
        return rfc3339(to_datetime(value))
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Place):
        return {"latitude": value.latitude, "longitude": value.longitude}
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value
