"""Conversion between Firestore values and Python values. Pure.

The bare protocol buffer classes are used. Their proto-plus wrappers would take more time than the rest of a write.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any

from google.cloud.firestore_v1.types import document
from google.type.latlng_pb2 import LatLng

from celery_statemanager.models import rfc3339
from celery_statemanager.records import to_datetime

Value = document.Value.pb()

_INT64 = range(-(2**63), 2**63)
_MAX_DEPTH = 18
_MAX_PATH_LENGTH = 700
"""Bytes of all keys that lead to a value. Firestore allows 1,500, counting dots and escaped quotes."""

_SCALARS = {
    str: "string_value",
    int: "integer_value",
    bool: "boolean_value",
    float: "double_value",
    bytes: "bytes_value",
}


class Moment(int):
    """Microseconds since the epoch, stored as a timestamp."""


def encode(value: Any) -> Any:
    """Convert a value that Firestore can represent (see ``is_native``)."""
    message = Value()
    _fill(message, value)
    return message


def _fill(message: Any, value: Any) -> None:
    """Set a new value in place, because building it elsewhere and copying it takes twice as long."""
    if (scalar := _SCALARS.get(type(value))) is not None:
        setattr(message, scalar, value)
    elif value is None:
        message.null_value = 0
    elif isinstance(value, Moment):
        message.timestamp_value.seconds, rest = divmod(value, 1_000_000)
        message.timestamp_value.nanos = rest * 1_000
    elif isinstance(value, (list, tuple)):
        message.array_value.SetInParent()
        values = message.array_value.values
        for inner in value:
            _fill(values.add(), inner)
    elif isinstance(value, Mapping):
        message.map_value.SetInParent()
        fill_fields(message.map_value, value)
    else:  # a subclass, such as ``Status``
        setattr(message, next(name for kind, name in _SCALARS.items() if isinstance(value, kind)), value)


def fill_fields(message: Any, value: Mapping[str, Any]) -> None:
    """Set the fields of a new map or document."""
    fields = message.fields
    for key, inner in value.items():
        _fill(fields[key], inner)


def decode(value: Any) -> Any:
    """Convert a Firestore value. Keys of maps are in code-point order; a timestamp becomes a ``Moment``."""
    kind = value.WhichOneof("value_type")
    if kind in {None, "null_value"}:
        return None
    if kind == "timestamp_value":
        return microseconds(value.timestamp_value)
    if kind == "map_value":
        return decode_fields(value.map_value.fields)
    if kind == "array_value":
        return [decode(inner) for inner in value.array_value.values]
    return getattr(value, kind)


def decode_fields(fields: Any) -> dict[str, Any]:
    """Convert the fields of a document or a map."""
    return {key: decode(fields[key]) for key in sorted(fields)}


def microseconds(timestamp: Any) -> Moment:
    """Convert a protocol buffer timestamp."""
    return Moment(timestamp.seconds * 1_000_000 + timestamp.nanos // 1_000)


def is_native(value: Any, depth: int = 0, path: int = 0) -> bool:
    """Return whether Firestore can represent a JSON value.

    It cannot represent arrays in arrays, integers beyond 64 bits, empty or reserved keys, deep nesting, or long paths
    of keys.

    Args:
        path: the length of the keys above the value, in bytes.
    """
    if isinstance(value, bool) or value is None or isinstance(value, (float, str)):
        return True
    if isinstance(value, int):
        return value in _INT64
    if depth >= _MAX_DEPTH:
        return False
    if isinstance(value, list):
        return all(not isinstance(inner, list) and is_native(inner, depth + 1, path) for inner in value)
    paths = {key: path + len(key.encode()) for key in value}
    return all(
        key
        and not re.fullmatch(r"__.*__", key, re.DOTALL)
        and paths[key] <= _MAX_PATH_LENGTH
        and is_native(inner, depth + 1, paths[key])
        for key, inner in value.items()
    )


def payload_fields(payload: str | None) -> dict[str, Any]:
    """Return the fields of a payload: a native map, or its text in ``payloadJSON`` if Firestore cannot represent it."""
    if payload is None:
        return {"payload": None}
    value = json.loads(payload)
    return {"payload": value} if is_native(value) else {"payload": None, "payloadJSON": payload}


def payload_of(fields: Mapping[str, Any]) -> str | None:
    """Return the payload that a document contains, as JSON text."""
    text = fields.get("payloadJSON")
    if text is not None:
        return str(text)
    value = fields.get("payload")
    return None if value is None else json.dumps(_json_value(value), ensure_ascii=False, separators=(",", ":"))


def _json_value(value: Any) -> Any:
    """Convert a value that another program may have written: times, bytes (as Go does) and coordinates become JSON."""
    if isinstance(value, Moment):
        return rfc3339(to_datetime(value))
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, LatLng):
        return {"latitude": value.latitude, "longitude": value.longitude}
    if isinstance(value, dict):
        return {key: _json_value(inner) for key, inner in value.items()}
    return [_json_value(inner) for inner in value] if isinstance(value, list) else value
