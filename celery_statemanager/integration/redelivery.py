"""The policy that decides whether a task runs again after its worker was lost."""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery

from celery_statemanager.errors import ConfigurationError
from celery_statemanager.integration import stalling
from celery_statemanager.integration.settings import POLICIES

logger = logging.getLogger(__name__)


def requeues(task: Any, setting: str) -> bool:
    """Return whether a lost message of this task is published again; an invalid policy of the task is ignored."""
    own = getattr(task, "on_lost", None)
    policy = own if own in POLICIES else setting
    return policy == "requeue" or (policy == "auto" and bool(task.acks_late))


def check(name: str, on_lost: Any) -> None:
    """Raise ``ConfigurationError`` for an invalid policy of the task of this name."""
    if on_lost not in (None, *POLICIES):
        raise ConfigurationError(
            f"task {name!r}: on_lost must be one of {', '.join(POLICIES)}, not {on_lost!r}: correct it where the task "
            "is declared, or remove it to use statemanager_on_lost"
        )


def check_task(task: Any) -> None:
    """Raise ``ConfigurationError`` for a task with an invalid policy; None stands for a task unknown to the app."""
    if task is not None:
        check(task.name, getattr(task, "on_lost", None))


def log_invalid_options(app: Celery, progress_interval: float) -> None:
    """Log the tasks of an app with an invalid ``on_lost``, ``stall_after`` or ``on_stall``.

    They are only logged, because Celery registers every shared task of a process with all its apps.
    """
    for name in sorted(app.tasks):
        try:
            check_task(app.tasks[name])
        except ConfigurationError as error:
            logger.error(  # noqa: TRY400 - a traceback would not help
                "%s; until then statemanager_on_lost applies to it, and submit rejects it", error
            )
        try:
            stalling.check_task(name, app.tasks[name], progress_interval)
        except ConfigurationError as error:
            logger.error("%s; until then neither has an effect, and submit rejects it", error)  # noqa: TRY400
