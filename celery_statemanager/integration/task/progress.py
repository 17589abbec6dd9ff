"""Progress reported by a task. Invalid values never fail the task."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from billiard.exceptions import SoftTimeLimitExceeded

from celery_statemanager.codec import progress_json
from celery_statemanager.limits import (
    LONGEST_MESSAGE,
    check_message,
    check_number,
    check_size,
    percent,
    sanitize,
    short_repr,
    to_number,
)

logger = logging.getLogger(__name__)

_warned: set[str] = set()
"""Names of the tasks whose invalid values were logged."""


class Progress(NamedTuple):
    """A status, the JSON text of ``payload["progress"]``, and a message."""

    status: int
    text: str
    message: str | None


def to_progress(
    done: Any, total: Any, message: Any, *, max_bytes: int, task: str, log_extra: Mapping[str, Any]
) -> Progress | None:
    """Return the progress to write for the values of a task; None if they are not finite numbers.

    A total of 0 or less counts as 1, and ``done`` is clamped to 0 … total. A message that cannot be stored is converted
    to text and truncated. Invalid values are logged once per task name and process.

    Args:
        max_bytes: the limit of the encoded message.
    """
    text, correction = _to_message(message, max_bytes)
    written: tuple[int, str] | None
    try:
        part, whole = check_number("done", done), check_number("total", total)
        written = percent(part, whole), progress_json(part, whole)
    except (TypeError, ValueError):
        written, correction = _clamped(done, total)
    if correction is not None and task not in _warned:
        _warned.add(task)
        values = ", ".join(map(short_repr, (done, total) if message is None else (done, total, message)))
        warning = "task %r called progress(%s): %s (logged once per task name in each process)"
        logger.warning(warning, task, values, correction, extra=log_extra)
    return None if written is None else Progress(*written, text)


def _clamped(done: Any, total: Any) -> tuple[tuple[int, str] | None, str]:
    """Return the status and the JSON text of invalid values, None if they are not numbers, and the correction."""
    part, whole = _number(done), _number(total)
    if part is not None and whole is not None and abs(whole) != math.inf:
        whole = whole if whole > 0 else 1
        part = min(max(part, 0), whole)
        try:
            return (percent(part, whole), progress_json(part, whole)), f"written as {part!r} of {whole!r}"
        except ValueError:  # an integer of more digits than Python converts to text
            pass
    return None, "not written; done must be a number and total a finite number"


def _number(value: Any) -> float | None:
    """Return a number of any type, a bool too, as int or float; None for NaN and for other values."""
    number = int(value) if type(value) is bool else to_number(value)
    return None if number != number else number  # noqa: PLR0124 - only NaN differs from itself; math.isnan rejects long integers


def _to_message(message: Any, max_bytes: int) -> tuple[str | None, str | None]:
    """Return a message that can be stored, and the correction."""
    try:
        text = check_message(message)
        check_size(text, None, max_bytes)
    except (TypeError, ValueError):
        try:
            text = sanitize(str.__str__(str(message)), max(1, min(LONGEST_MESSAGE, max_bytes // 4)))
        except SoftTimeLimitExceeded:
            raise
        except Exception:  # noqa: BLE001 - the task's own __str__ may raise anything
            return None, "the message was omitted"
        return text, "the message was converted to text or truncated"
    return text, None
