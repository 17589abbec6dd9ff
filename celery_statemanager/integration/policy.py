"""What becomes of a message whose worker is gone: as its task says by ``on_lost``, else as the setting does."""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery

from celery_statemanager.errors import ConfigurationError
from celery_statemanager.integration.settings import POLICIES

logger = logging.getLogger(__name__)


def requeues(task: Any, setting: str) -> bool:
    """Whether a lost message of this task is to be sent again; a policy that does not exist is passed over."""
    own = getattr(task, "on_lost", None)
    policy = own if own in POLICIES else setting
    return policy == "requeue" or (policy == "auto" and bool(task.acks_late))


def check(name: str, on_lost: Any) -> None:
    """Refuse a policy that does not exist. Raises: ConfigurationError."""
    if on_lost not in (None, *POLICIES):
        raise ConfigurationError(
            f"task {name!r}: on_lost is one of {', '.join(POLICIES)}, not {on_lost!r}: correct it where the task is "
            "declared, or leave it out to go by statemanager_on_lost"
        )


def check_task(task: Any) -> None:
    """Refuse a task whose policy does not exist; None is one that the app does not know. Raises: ConfigurationError."""
    if task is not None:
        check(task.name, getattr(task, "on_lost", None))


def tell(app: Celery) -> None:
    """Log which of an app's tasks have a policy that does not exist.

    No more than that: Celery gives an app all decorated tasks of its process, its own or not.
    """
    for name in sorted(app.tasks):
        try:
            check_task(app.tasks[name])
        except ConfigurationError as error:
            logger.error("%s; until then it goes by that, and submit refuses it", error)  # noqa: TRY400 - no bug of ours
