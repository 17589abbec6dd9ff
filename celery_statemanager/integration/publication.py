"""Make the message of a cell. It has our header whatever its task class does; if none is made, the cell ends."""

from __future__ import annotations

import logging
from collections.abc import Callable

from celery import Celery, Task

from celery_statemanager.errors import AttemptSuperseded, JobCancelled, JobNotFound
from celery_statemanager.integration.binding import Binding
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.leases import cell_name
from celery_statemanager.models import Status
from celery_statemanager.records import Write

logger = logging.getLogger(__name__)

Publish = Callable[[tuple[str, ...]], object]
"""Publish the callbacks of decided latches."""


def may_hold_back(app: Celery, task: str) -> bool:
    """Return whether a task's class sends its messages itself and may therefore leave one out; never in eager mode."""
    return not app.conf.task_always_eager and task in app.tasks and _class_of(app, task) is not Task


def reject(tracker: Tracker, binding: Binding, message: str, publish: Publish) -> None:
    """End a cell whose message was not published, for example by a lock that returns another task's result."""
    logger.warning(message, extra=binding.log_extra)
    _end(tracker, binding, Status.REJECTED, message, publish)


def cancel(tracker: Tracker, binding: Binding, publish: Publish) -> None:
    """End a cell of a cancelled job whose message is due. The store adds the reason of the cancellation."""
    _end(tracker, binding, Status.CANCELLED, "", publish)


def _end(tracker: Tracker, binding: Binding, status: Status, message: str, publish: Publish) -> None:
    place = binding.tag, binding.task_index

    def write() -> None:
        try:
            publish(tracker.store.write(binding.ref, Write.never_begun(*place, int(status), message)).decided)
        except (AttemptSuperseded, JobCancelled, JobNotFound) as error:
            logger.info("state not written: %s", error, extra=binding.log_extra)

    tracker.backlog.now_or_later((cell_name(binding.ref, *place), "outcome"), write, binding.log_extra)


def not_published(app: Celery, task: str) -> str:
    """Return the state message for a task that was not sent; it names the class that should have sent it."""
    return f"not published: apply_async of {_class_of(app, task).__name__} sent no message for task {task}"


def _class_of(app: Celery, task: str) -> type:
    return next((each for each in type(app.tasks[task]).__mro__ if "apply_async" in vars(each)), Task)
