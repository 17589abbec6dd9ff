"""Limits of names, numbers, messages and payloads (rule R9). Pure.

Every check runs before anything is sent to a store.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping
from numbers import Integral, Number
from typing import Any
from uuid import UUID

MAX_NAME = 200
MAX_TASKS = 10_000_000
MAX_STATE_BYTES = 65_536
MAX_METADATA_BYTES = 4_096
MAX_RESULT_BYTES = 262_144
MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_VALUE_BYTES = 900_000
"""Maximum size of a value that a row keeps, as UTF-8. Every store must keep values of this size."""

MAX_DEPTH = 200
"""Deepest nesting of a payload, low enough to decode the payload from within a deep call stack."""

MAX_VALUES = 2_000_000
"""Maximum number of values in a payload."""

LONGEST_WAIT = 1e9
"""Seconds. Timeouts above this are treated as infinite, because system calls cannot represent them."""

LONGEST_MESSAGE = 2_000
"""Maximum number of characters of a message that is written automatically."""

INT32 = range(-(2**31), 2**31)


def check_name(kind: str, value: Any) -> str:
    """Return a valid job_id, tag or run_token as a plain string.

    A name has 1–200 characters, none of them a control character or a lone surrogate.

    Raises: TypeError if it is not a string; ValueError if it violates these limits.
    """
    if not isinstance(value, str):
        raise TypeError(f"{kind} must be a string, not {_type_and_repr(value)}")
    if not 1 <= len(value) <= MAX_NAME:
        raise ValueError(f"{kind} must have 1 to {MAX_NAME} characters, not {len(value)}: {value[:60]!r}")
    if not (value.isascii() and value.isprintable()):
        bad = next((c for c in value if unicodedata.category(c) in ("Cc", "Cs")), None)
        if bad is not None:
            raise ValueError(f"{kind} must not contain the character {bad!r}: {value[:60]!r}")
    return str.__str__(value)  # the value of a str enum, whose ``str()`` may differ


def check_id(kind: str, value: Any) -> str:
    """Return a valid job_id or run_token as a plain string, a UUID as its text. Raises: TypeError, ValueError."""
    if not isinstance(value, (str, UUID)):
        raise TypeError(f"{kind} must be a string or a UUID, not {_type_and_repr(value)}")
    return check_name(kind, str(value) if isinstance(value, UUID) else value)


def check_num_tasks(value: Any) -> int:
    """Return a valid number of rows, 1 … 10,000,000. Raises: TypeError, ValueError."""
    return _check_integer("num_tasks", value, range(1, MAX_TASKS + 1))


def check_index(value: Any, num_tasks: int) -> int:
    """Return a valid row index of a job with ``num_tasks`` rows. Raises: TypeError, ValueError."""
    return _check_integer("task_index", value, range(num_tasks))


def check_status(value: Any) -> int:
    """Return a valid status, an int32. Raises: TypeError, ValueError."""
    return _check_integer("status", value, INT32)


def check_optional(kind: str, value: Any) -> str | None:
    """Return a valid name, or None. Raises: TypeError, ValueError."""
    return None if value is None else check_name(kind, value)


def check_timeout(value: Any) -> float | None:
    """Return a timeout in seconds, at least 0, or None if it is infinite. Raises: TypeError, ValueError."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"timeout must be a number of seconds or None, not {_type_and_repr(value)}")
    if value > LONGEST_WAIT:
        return None
    if value < 0:
        return 0.0
    if math.isnan(value):
        raise ValueError(f"timeout must be a number of seconds or None, not {value!r}")
    return float(value)


def check_max_in_flight(value: Any) -> int | None:
    """Return a number of rows, at least 1, or None for no limit. Raises: TypeError, ValueError."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"max_in_flight must be a number of rows or None, not {_type_and_repr(value)}")
    if value < 1:
        raise ValueError(f"max_in_flight must be at least 1, or None for no limit, not {value}")
    return int(value)


def check_page_size(value: Any) -> int:
    """Return a valid number of jobs in a page, 1 … 1,000. Raises: TypeError, ValueError."""
    return _check_integer("limit", value, range(1, 1_001))


def check_search(value: Any) -> str:
    """Return the text of a search; None is the empty text, which matches everything. Raises: TypeError."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"text must be a string or None, not {_type_and_repr(value)}")
    return value or ""


def parse_cursor(cursor: Any) -> tuple[int, str]:
    """Return the number and the text of a cursor ``"NUMBER"`` or ``"NUMBER TEXT"``. Raises: TypeError, ValueError."""
    if not isinstance(cursor, str):
        raise TypeError(f"cursor must be a string or None, not {_type_and_repr(cursor)}")
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise invalid_cursor(cursor)
    return int(match[1]), match[2] or ""


def invalid_cursor(cursor: str) -> ValueError:
    """Return the error for a cursor that no page has returned."""
    return ValueError(f"cursor must be one that an earlier page has returned, not {short_repr(cursor)}")


def parse_position(cursor: str, numbers: int) -> tuple[int, ...]:
    """Return the numbers of a watch's cursor ``"NUMBER-NUMBER-…"``. Raises: ValueError."""
    parts = cursor.split("-")
    if len(parts) != numbers or not all(re.fullmatch("[0-9]{1,20}", part) for part in parts):
        raise invalid_since(cursor)
    return tuple(map(int, parts))


def invalid_since(cursor: str) -> ValueError:
    """Return the error for a cursor that no event has had."""
    return ValueError(f"since must be the cursor of an event of a subscription to this job, not {short_repr(cursor)}")


_CURSOR = re.compile(r"([0-9]{1,16})(?: ([^\x00-\x1f\x7f\ud800-\udfff]*))?")


def check_message(value: Any) -> str | None:
    """Return a valid message as a plain string, or None.

    Raises: TypeError if it is not a string; ValueError if it cannot be encoded.
    """
    if value is None:
        return None
    if not issubclass(type(value), str):  # isinstance would ask the object's own __class__
        raise TypeError(f"message must be a string, not {_type_and_repr(value)}")
    text = str.__str__(value)
    if not text.isascii():
        _check_encodable("message", text)
    return text


def encode_metadata(metadata: Any) -> str | None:
    """Return the metadata of a job as compact JSON text, or None if there are none. Raises: TypeError, ValueError."""
    text = encode_payload(metadata, "metadata")
    if text is not None and _size(text) > MAX_METADATA_BYTES:
        raise ValueError(
            f"metadata takes {_size(text)} bytes as JSON, the limit is {MAX_METADATA_BYTES}: keep large data elsewhere "
            "and put its address in the metadata"
        )
    return None if text == "{}" else text


def encode_payload(payload: Any, kind: str = "payload") -> str | None:
    """Return a payload as compact JSON text, or None if there is none. Raises: TypeError, ValueError.

    Args:
        kind: the word that error messages use.
    """
    if payload is None:
        return None
    if not isinstance(payload, Mapping):
        raise TypeError(f"{kind} must be a JSON object (a dict), not {_type_and_repr(payload)}")
    try:
        _check_nesting(payload, MAX_DEPTH, [MAX_VALUES])
        text = json.dumps(dict(payload), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except RecursionError:
        raise ValueError(f"{kind} {_TOO_DEEP}") from None
    except (TypeError, ValueError) as error:
        raised = TypeError if isinstance(error, TypeError) else ValueError  # a subclass may need other arguments
        raise raised(f"{kind} is not valid JSON: {error}") from None
    _check_encodable(kind, text)
    return text


def check_size(message: str | None, payload: str | None, limit: int) -> None:
    """Check the size of message and payload text. Raises: ValueError if they exceed ``limit`` bytes together."""
    size = (_size(message) if message else 0) + (_size(payload) if payload else 0)
    if size > limit:
        raise ValueError(
            f"message and payload take {size} bytes together, the limit is {limit} (statemanager_max_state_bytes): "
            "keep large data elsewhere and put its address in the payload"
        )


def percent(done: Any, total: Any) -> int:
    """Return ``done`` of ``total`` as a status, 1 … 100; 100 only if all is done. Raises: TypeError, ValueError."""
    done, total = check_number("done", done), check_number("total", total)
    if not 0 <= done <= total or total <= 0:
        values = f"{short_repr(done)} of {short_repr(total)}"
        raise ValueError(f"progress must be 0 <= done <= total with total > 0, not {values}")
    if isinstance(done, int) and isinstance(total, int):
        return max(1, 100 * done // total)
    from fractions import Fraction  # a quotient of floats is not exact

    return max(1, math.floor(100 * Fraction(done) / Fraction(total)))


def check_number(kind: str, value: Any) -> int | float:
    """Return a finite number of any type, such as a Decimal or one of NumPy, as int or float.

    Raises: TypeError if it is not a real number; ValueError if it is not finite or too large for a float.
    """
    number = value if type(value) in (int, float) else to_number(value)
    if number is None:
        raise TypeError(f"{kind} must be a number, not {_type_and_repr(value)}")
    if isinstance(number, float) and not math.isfinite(number):
        raise ValueError(f"{kind} must be a finite number, not {short_repr(value)}")
    return number


def to_number(value: Any) -> int | float | None:
    """Return a number of any type as int or float, which may be infinite or NaN; None if it is not a real number."""
    try:
        if isinstance(value, bool) or not isinstance(value, Number):
            return None
        return int(value) if isinstance(value, Integral) else _to_float(value)
    except Exception:  # noqa: BLE001 - a complex number, a signalling NaN, a type whose own code raises
        return None


def _to_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def short_repr(value: Any) -> str:
    """Return a short description of a rejected value for its error message, at most 60 characters of its ``repr``."""
    try:
        return sanitize(str.__str__(repr(value))[:_LONGEST_REPR])
    except Exception:  # noqa: BLE001 - any object may be given; Python formats no integer of more than 4,300 digits
        if issubclass(type(value), int):
            return f"a number of {int.bit_length(value)} bits"
        return f"<{class_name(type(value))} without a repr>"


_LONGEST_REPR = 60


def class_name(kind: type) -> str:
    """Return the name of a class, even if its metaclass computes another one."""
    return sanitize(type.__dict__["__name__"].__get__(kind), _LONGEST_REPR)


def sanitize(text: str, limit: int = LONGEST_MESSAGE) -> str:
    """Return text as a valid message: surrogates and NUL characters replaced, cut to ``limit`` characters."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return cut.encode("utf-8", "replace").decode().replace("\0", "?")


_TOO_DEEP = f"is nested too deeply (more than {MAX_DEPTH} levels) or contains itself"


def _check_integer(kind: str, value: Any, allowed: range) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{kind} must be an int, not {_type_and_repr(value)}")
    number = int(value)  # ``in`` compares an int subclass with each element of the range
    if number not in allowed:
        raise ValueError(f"{kind} must be {allowed.start} … {allowed.stop - 1}, not {short_repr(number)}")
    return number


def _check_nesting(value: Any, levels: int, values_left: list[int]) -> None:
    """Check a value before it is encoded. Lists that share their elements may represent any number of values."""
    values_left[0] -= 1
    if values_left[0] < 0:
        raise ValueError(f"it has more than {MAX_VALUES:,} values")
    if not isinstance(value, (Mapping, list, tuple)):
        return
    if not levels:
        raise RecursionError
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"keys must be strings, not {_type_and_repr(key)}")
    for inner in value.values() if isinstance(value, Mapping) else value:
        _check_nesting(inner, levels - 1, values_left)


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _check_encodable(kind: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{kind} contains a lone surrogate at character {error.start}") from None


def _type_and_repr(value: Any) -> str:
    return f"{class_name(type(value))} {short_repr(value)}"
