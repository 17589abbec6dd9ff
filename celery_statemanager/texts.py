"""Text of any object, for messages that are written automatically. No function here raises. Pure.

Applications raise and return objects whose own code may fail: a ``__str__`` that raises, an argument that is not text,
a class with a computed name. Automatic messages are created here, because a handler that fails leaves its cell open.
"""

from __future__ import annotations

from typing import Any

from celery_statemanager.limits import LONGEST_MESSAGE, class_name, sanitize, short_repr

_MOST_ARGUMENTS = 20


def to_text(value: Any, limit: int = LONGEST_MESSAGE) -> str:
    """Return ``str(value)`` as a valid message, or a short description if the value has no text."""
    text = _str(value)
    return short_repr(value) if text is None else sanitize(text, limit)


def error_text(error: BaseException) -> str:
    """Return ``str(error)`` as a valid message, or the exception's arguments if it has no text."""
    text = _str(error)
    return _arguments(error) if text is None else sanitize(text)


def describe(error: BaseException) -> str:
    """Return an error as ``ValueError: text``."""
    return labelled(class_name(type(error)), error_text(error))


def labelled(name: str, text: str) -> str:
    """Return a name and a text as one message; the name alone if there is no text."""
    return sanitize(f"{name}: {text}" if text else name)


def _str(value: Any) -> str | None:
    """Return ``str(value)`` as a plain string, None if the value's own code raises."""
    try:
        return str.__str__(value if issubclass(type(value), str) else str(value))
    except Exception:  # noqa: BLE001 - the object's code may raise anything
        return None


def _arguments(error: BaseException) -> str:
    args = BaseException.__dict__["args"].__get__(error)[:_MOST_ARGUMENTS]
    return sanitize(", ".join(map(to_text, args)))
