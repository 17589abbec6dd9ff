"""Publish the message of a cell. It has our header whatever its task class does; if none is sent, the cell ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from celery import Celery, Task

from celery_statemanager.errors import AttemptSuperseded, JobCancelled, JobNotFound
from celery_statemanager.integration.binding import HEADER, Binding
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.leases import cell_name
from celery_statemanager.models import Status
from celery_statemanager.records import Write

logger = logging.getLogger(__name__)

Publish = Callable[[tuple[str, ...]], object]
"""Publish the callbacks of decided latches."""


class _Expected:
    """A message that is about to be published."""

    def __init__(self, binding: Binding) -> None:
        self.binding = binding
        self.is_published = False


_expected: ContextVar[_Expected | None] = ContextVar("statemanager_expected", default=None)


def task_id_of(headers: dict[str, Any], body: Any) -> str | None:
    """Return the Celery task id of a message that is about to be published, in either of Celery's protocols."""
    found: str | None = headers.get("id") if isinstance(body, tuple) else body.get("id")
    return found


def retries_of(headers: dict[str, Any], body: Any) -> int:
    """Return the number of retries before a message, in either of Celery's protocols."""
    return int((headers if isinstance(body, tuple) else body).get("retries") or 0)


def observe(headers: dict[str, Any], body: Any) -> None:
    """Record that the expected message is published, and restore the binding that its task class has removed."""
    expected = _expected.get()
    if expected is not None and task_id_of(headers, body) == expected.binding.celery_task_id:
        expected.is_published = True
        headers.setdefault(HEADER, expected.binding.to_header())


def send(tracker: Tracker, binding: Binding, task: str, apply: Callable[[], object], publish: Publish) -> None:
    """Call ``apply``, which sends the message of a cell. End the cell if it sent none. Raises: as ``apply``."""
    with _expecting(binding) as expected:
        apply()
    if not expected.is_published and may_hold_back(tracker.app, task):
        reject(tracker, binding, task, publish)


def may_hold_back(app: Celery, task: str) -> bool:
    """Return whether a task's class sends its messages itself and may therefore leave one out; never in eager mode."""
    return not app.conf.task_always_eager and task in app.tasks and _class_of(app, task) is not Task


@contextmanager
def _expecting(binding: Binding) -> Iterator[_Expected]:
    expected = _Expected(binding)
    token = _expected.set(expected)
    try:
        yield expected
    finally:
        _expected.reset(token)


def reject(tracker: Tracker, binding: Binding, task: str, publish: Publish) -> None:
    """End a cell whose message its task class did not publish, such as a lock that returns another task's result."""
    message = not_published(tracker.app, task)
    place = binding.tag, binding.task_index

    def write() -> None:
        try:
            publish(tracker.store.write(binding.ref, Write.never_begun(*place, int(Status.REJECTED), message)).decided)
        except (AttemptSuperseded, JobCancelled, JobNotFound) as error:
            logger.info("state not written: %s", error, extra=binding.log_extra)

    logger.warning(message, extra=binding.log_extra)
    tracker.backlog.now_or_later((cell_name(binding.ref, *place), "outcome"), write, binding.log_extra)


def not_published(app: Celery, task: str) -> str:
    """Return the state message for a task that was not sent; it names the class that should have sent it."""
    return f"not published: apply_async of {_class_of(app, task).__name__} sent no message for task {task}"


def _class_of(app: Celery, task: str) -> type:
    return next(each for each in type(app.tasks[task]).__mro__ if "apply_async" in vars(each))
