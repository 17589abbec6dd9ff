"""What may be stored (rule R9) and asked. Every check runs before anything is sent. Pure."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping
from typing import Any

MAX_NAME = 200
MAX_TASKS = 10_000_000
MAX_STATE_BYTES = 65_536
MAX_DEPTH = 200
"""Levels of a payload; far from what Python reads back only where its stack is nearly empty."""

LONGEST_WAIT = 1e9
"""Seconds; whoever waits longer waits for ever, as clocks of systems do not reach as far."""

INT32 = range(-(2**31), 2**31)


def check_name(kind: str, value: Any) -> str:
    """Accept a job_id, tag or run_token: 1–200 characters, no control characters or lone surrogates.

    Raises: TypeError, ValueError.
    """
    if not isinstance(value, str):
        raise TypeError(f"{kind} is a text, not {_shown(value)}")
    if not 1 <= len(value) <= MAX_NAME:
        raise ValueError(f"{kind} has 1 to {MAX_NAME} characters, not {len(value)}: {value[:60]!r}")
    if not (value.isascii() and value.isprintable()):
        bad = next((c for c in value if unicodedata.category(c) in ("Cc", "Cs")), None)
        if bad is not None:
            raise ValueError(f"{kind} may not hold the character {bad!r}: {value[:60]!r}")
    return str.__str__(value)  # no enum, whose own text is another


def check_num_tasks(value: Any) -> int:
    """Accept 1 … 10,000,000. Raises: TypeError, ValueError."""
    return _integer("num_tasks", value, range(1, MAX_TASKS + 1))


def check_index(value: Any, num_tasks: int) -> int:
    """Accept a row of a job. Raises: TypeError, ValueError."""
    return _integer("task_index", value, range(num_tasks))


def check_status(value: Any) -> int:
    """Accept an int32. Raises: TypeError, ValueError."""
    return _integer("status", value, INT32)


def check_optional(kind: str, value: Any) -> str | None:
    """Accept a name or None. Raises: TypeError, ValueError."""
    return None if value is None else check_name(kind, value)


def check_timeout(value: Any) -> float | None:
    """Accept seconds to wait, or None for ever; time that was up before is 0. Raises: TypeError, ValueError."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"timeout is a number of seconds or None, not {_shown(value)}")
    if value > LONGEST_WAIT:
        return None
    if value < 0:
        return 0.0
    if math.isnan(value):
        raise ValueError(f"timeout is a number of seconds or None, not {value!r}")
    return float(value)


def check_message(value: Any) -> str | None:
    """Accept a text that can be encoded, or None. Raises: TypeError, ValueError."""
    if value is None or (isinstance(value, str) and value.isascii()):
        return value
    if not isinstance(value, str):
        raise TypeError(f"message is a text, not {_shown(value)}")
    _encoded("message", value)
    return value


def encode_payload(payload: Any) -> str | None:
    """Give a payload as compact JSON text. Raises: TypeError, ValueError."""
    if payload is None:
        return None
    if not isinstance(payload, Mapping):
        raise TypeError(f"payload is a JSON object (a dict), not {_shown(payload)}")
    try:
        _check_nesting(payload, MAX_DEPTH)
        text = json.dumps(dict(payload), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except (TypeError, ValueError) as error:
        raise type(error)(f"payload is not JSON: {error}") from None
    _encoded("payload", text)
    return text


def check_size(message: str | None, payload: str | None, limit: int) -> None:
    """Accept message and payload text of at most ``limit`` bytes together. Raises: ValueError."""
    size = (_size(message) if message else 0) + (_size(payload) if payload else 0)
    if size > limit:
        raise ValueError(
            f"message and payload take {size} bytes together, the limit is {limit} (statemanager_max_state_bytes): "
            "keep large data elsewhere and put its address in the payload"
        )


def short_repr(value: Any) -> str:
    """Give a refused value as its error shows it; Python writes no integer of more than 4,300 digits."""
    try:
        return f"{value!r:.60}"
    except ValueError:
        return f"a number of {value.bit_length()} bits" if isinstance(value, int) else "what cannot be written"


def sanitize(text: str, limit: int = 2_000) -> str:
    """Make any text storable as a message: surrogates replaced, cut at ``limit`` characters."""
    clean = text.encode("utf-8", "replace").decode()
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


_TOO_DEEP = f"payload is nested too deeply (more than {MAX_DEPTH} levels), or holds itself"


def _integer(kind: str, value: Any, allowed: range) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{kind} is an int, not {_shown(value)}")
    number = int(value)  # a range looks an int subclass up one by one
    if number not in allowed:
        raise ValueError(f"{kind} is {allowed.start} … {allowed.stop - 1}, not {short_repr(number)}")
    return number


def _check_nesting(value: Any, levels: int) -> None:
    if not isinstance(value, (Mapping, list, tuple)):
        return
    if not levels:
        raise RecursionError
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"keys are texts, not {_shown(key)}")
    for inner in value.values() if isinstance(value, Mapping) else value:
        _check_nesting(inner, levels - 1)


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _encoded(kind: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{kind} holds a lone surrogate at character {error.start}") from None


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {short_repr(value)}"
