"""Progress as a task reports it: whatever the values are, reporting them does not fail the task."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from numbers import Number
from typing import Any, NamedTuple

from celery_statemanager.codec import progress_json
from celery_statemanager.limits import check_message, check_size, percent, sanitize, short_repr

logger = logging.getLogger(__name__)

_LONGEST_MESSAGE = 2_000

_warned: set[str] = set()
"""Names of the tasks whose values were reported as out of range."""


class Progress(NamedTuple):
    """What is written: a status, the JSON text of ``payload["progress"]``, and a message."""

    status: int
    text: str
    message: str | None


def to_progress(
    done: Any, total: Any, message: Any, *, max_bytes: int, task: str, log_extra: Mapping[str, Any]
) -> Progress | None:
    """Return what to write for the values of a task, or None for values that are not finite numbers.

    A total of 0 or less counts as 1, and ``done`` is clamped to 0 … total. A message that cannot be stored is converted
    to text and cut. Logs a warning with the values, once per task name and process.

    Args:
        max_bytes: the limit of the encoded message.
    """
    kept, trouble = _to_message(message, max_bytes)
    written: tuple[int, str] | None
    try:
        written = percent(done, total), progress_json(done, total)
    except (TypeError, ValueError):
        written, trouble = _clamped(done, total)
    if trouble is not None and task not in _warned:
        _warned.add(task)
        values = ", ".join(map(_shown, (done, total) if message is None else (done, total, message)))
        text = "task %r called progress(%s): %s; reported once per task name in each process"
        logger.warning(text, task, values, trouble, extra=log_extra)
    return None if written is None else Progress(*written, kept)


def _clamped(done: Any, total: Any) -> tuple[tuple[int, str] | None, str]:
    """Return status and JSON text of values out of range, None if they are no values, and what was done about it."""
    part, whole = _number(done), _number(total)
    if part is not None and whole is not None and abs(whole) != math.inf:
        whole = whole if whole > 0 else 1
        part = min(max(part, 0), whole)
        try:
            return (percent(part, whole), progress_json(part, whole)), f"written as {part!r} of {whole!r}"
        except ValueError:  # an integer of more digits than Python converts to text
            pass
    return None, "not written; done must be a number and total a finite one"


def _number(value: Any) -> float | None:
    """Return a number of any kind as int or float; None for NaN and for what is no number."""
    if not isinstance(value, Number):
        return None
    try:
        number = int(value) if isinstance(value, int) else float(value)  # type: ignore[arg-type] # complex: TypeError
    except (TypeError, ValueError, OverflowError):
        return None
    return None if number != number else number  # noqa: PLR0124 - as NaN does; math.isnan takes no long integer


def _to_message(message: Any, max_bytes: int) -> tuple[str | None, str | None]:
    """Return a message that can be stored, and what was done to make it one."""
    try:
        check_size(check_message(message), None, max_bytes)
    except (TypeError, ValueError):
        try:
            text = sanitize(str(message), max(1, min(_LONGEST_MESSAGE, max_bytes // 4)))
        except Exception:  # noqa: BLE001 - any object may be given, and its text is not worth a failure
            return None, "the message was left out"
        return text, "the message was converted to text, or cut"
    return message, None


def _shown(value: Any) -> str:
    try:
        return short_repr(value)
    except Exception:  # noqa: BLE001 - as above
        return f"<{type(value).__name__}>"
