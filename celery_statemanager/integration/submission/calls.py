"""Checks of one call of a task, before its message is published."""

from __future__ import annotations

from typing import Any

from celery import Celery, Task
from celery.canvas import Signature

from celery_statemanager.integration import redelivery, stalling
from celery_statemanager.integration.installed import tracker_of


def check_call(app: Celery, what: str, signature: Signature[Any], *prepended: Any) -> None:
    """Check the arguments of a signature as Celery does when it publishes it; skip the task of another app.

    Args:
        what: the name of the call for the error.
        prepended: the arguments that the task gets before those of the signature, unless it is immutable.

    Raises: TypeError – the task does not take the arguments; ValueError – the task cannot be tracked;
        ConfigurationError – the task has an invalid policy or limit.
    """
    task = app.tasks.get(signature.task or "")
    redelivery.check_task(task)
    tracker = tracker_of(app)
    if task is not None and tracker is not None:
        stalling.check_task(task.name, task, tracker.settings.progress_interval)
    if task is not None and has_own_strategy(task):
        raise ValueError(
            f"{what}, task {signature.task}: {NOT_TRACKED}; submit a task without a Strategy, which may call this one"
        )
    check = getattr(task, "__header__", None) if getattr(task, "typing", False) else None
    if check is None:
        return
    try:
        check(*(() if signature.immutable else prepended), *(signature.args or ()), **(signature.kwargs or {}))
    except TypeError as error:
        raise TypeError(f"{what}, task {signature.task}: {error}") from None


NOT_TRACKED = "its class defines its own Strategy, which processes messages differently, for example in batches"


def has_own_strategy(task: Any) -> bool:
    """Return whether a task defines its own Strategy, so that Celery may send no signals for each message."""
    return bool(task.Strategy != Task.Strategy)
