"""A stage of a chain that has returned, but whose next stage Celery could not publish."""

from __future__ import annotations

from typing import Any

from celery_statemanager.integration.task import outcomes
from celery_statemanager.integration.task.run import Run
from celery_statemanager.models import Status


def end_if_unpublished(run: Run, error: Any) -> bool:
    """Return whether the next stage was not published, after ending the attempt for this reason.

    Celery gives up after a second without its broker. A stage that may run again then publishes the next one.
    """
    if run.next_stage is None or run.next_is_published or run.next_stage[0].celery_task_id not in run.sent:
        return False
    message = f"returned, but its next stage was not published: {outcomes.describe(error)}"
    if run.may_run_again:
        run.pause(message, run.delivery)
    else:
        run.end(int(Status.FAILED), message, keep_app_status=False)
    return True
