"""A stage of a chain that has returned, but whose next stage Celery could not publish."""

from __future__ import annotations

from typing import Any

from celery import current_task

from celery_statemanager.integration.binding import binding_of
from celery_statemanager.integration.task import outcomes
from celery_statemanager.integration.task.run import Run, run_of
from celery_statemanager.models import Status


def on_publish(headers: Any) -> None:
    """Record that the body of the running stage has returned and that its next stage is to be published."""
    _note(headers, published=False)


def on_published(headers: Any = None, **_: Any) -> None:
    """Record that the running stage has published the next one."""
    _note(headers, published=True)


def _note(headers: Any, *, published: bool) -> None:
    run = run_of(current_task)
    following = None if run is None else binding_of(headers)
    if run is None or following is None:
        return
    own = run.binding
    if (following.ref, following.task_index, following.stage) == (own.ref, own.task_index, own.stage + 1):
        run.next_is_published = published


def end_if_unpublished(run: Run, error: Any) -> bool:
    """Return whether the next stage was not published, after ending the attempt for this reason.

    Celery gives up after a second without its broker. A stage that may run again then publishes the next one.
    """
    if run.next_is_published is not False:
        return False
    message = f"returned, but its next stage was not published: {outcomes.describe(error)}"
    if run.may_run_again:
        run.pause(message, run.delivery)
    else:
        run.end(int(Status.FAILED), message, keep_app_status=False)
    return True
