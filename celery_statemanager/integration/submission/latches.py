"""The callbacks of a job, checked and encoded before the job is created."""

from __future__ import annotations

from typing import Any

from celery import Celery
from kombu.utils.json import loads

from celery_statemanager.integration.callbacks import callback_to_json
from celery_statemanager.integration.submission import calls
from celery_statemanager.limits import short_repr
from celery_statemanager.records import Latch


def latch_of(app: Celery, name: str, callback: Any) -> Latch:
    """Return the latch of this name with its callback, after checking the callback. Raises: TypeError, ValueError."""
    if callback is None:
        return Latch()
    return checked_latch(app, f"on_{name}", callback, "job_id", "the job_id")


def checked_latch(app: Celery, what: str, callback: Any, takes: Any, taken: str, *, is_body: bool = False) -> Latch:
    """Return a latch with a callback, after checking the callback.

    Args:
        what: the name of the callback for errors.
        takes: an example of the argument that is prepended to its own, unless it is immutable.
        taken: the name of this argument for errors.

    Raises: TypeError, ValueError.
    """
    text = callback_to_json(what, callback)
    _check_kept(app, what, callback, text)
    try:
        calls.check_call(app, what, callback, takes)
    except TypeError as error:
        hint = "it is immutable and gets only its own arguments"
        hint = hint if callback.immutable else f"{taken} is prepended, {callback.task}.si(…) leaves it out"
        raise TypeError(f"{error} ({hint})") from None
    return Latch(text, is_body=is_body)


def _check_kept(app: Celery, what: str, callback: Any, text: str) -> None:
    """Check that a callback is stored unchanged, if its arguments are not sent as JSON anyway. Raises: TypeError."""
    kept = loads(text)
    if _serializer_of(app, callback) != "json" and not (
        _same([*callback.args], kept["args"]) and _same({**callback.kwargs}, kept["kwargs"])
    ):
        raise TypeError(
            f"{what}, task {callback.task}: callbacks are stored as JSON, which would change its arguments to "
            f"{short_repr(kept['args'])} {short_repr(kept['kwargs'])}: pass lists instead of tuples or sets, and "
            "dictionaries with string keys"
        )


def _same(given: Any, kept: Any) -> bool:
    """Return whether two values are equal and of the same types, in depth."""
    if type(given) is not type(kept):
        return False
    if isinstance(given, dict):
        return given.keys() == kept.keys() and all(_same(given[key], kept[key]) for key in given)
    if isinstance(given, (list, tuple)):
        return len(given) == len(kept) and all(map(_same, given, kept))
    return bool(given == kept)


def _serializer_of(app: Celery, signature: Any) -> str:
    """Return the name of the format in which Celery sends the arguments of a task signature."""
    own = getattr(app.tasks.get(signature.task or ""), "serializer", None)
    return str(signature.options.get("serializer") or own or app.conf.task_serializer)
