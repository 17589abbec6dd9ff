"""The end of a body that raised a ``BaseException`` which is not an ``Exception``.

Celery reports it from a prefork child. In its other pools it leaves the message unacknowledged and the task running.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.exceptions import WorkerShutdown, WorkerTerminate
from celery.worker import state as worker_state

from celery_statemanager.integration import pools
from celery_statemanager.integration.task import outcomes, running
from celery_statemanager.integration.task.replacement import Part
from celery_statemanager.integration.task.run import Run

logger = logging.getLogger(__name__)


def end_aborted(run: Run, task: Any, error: BaseException | None) -> None:
    """Write the end of an execution that was aborted, and report it to Celery where Celery does not know of it."""
    held = run.tracker.held_messages
    request = held.of_execution(task.request)
    if task.request.is_eager or outcomes.is_a(error, Exception):  # no other signal reports what eager mode propagates
        run.fail(SystemExit() if error is None else error)
    elif request is None or error is None or _is_reported(request, task, error):
        held.abandon(run.binding.celery_task_id)
    else:
        _report(run, request, error)


def _is_reported(request: Any, task: Any, error: BaseException) -> bool:
    """Return whether Celery itself has stopped the task, and reports that."""
    if outcomes.is_a(error, WorkerShutdown) or outcomes.is_a(error, WorkerTerminate):
        return True
    if request._already_revoked or request._already_cancelled:
        return True
    if type(error).__name__ == "GreenletExit" and request.id in worker_state.revoked:  # eventlet ends the body first
        return True
    if (type(error).__module__, type(error).__name__) != ("gevent.timeout", "Timeout"):
        return False
    limit = (task.request.timelimit or [None])[0] or task.time_limit or pools.default_time_limit()
    return limit is not None and getattr(error, "seconds", None) == limit


def end_aborted_part(part: Part, task: Any, error: BaseException | None) -> None:
    """End the cell of a replacement whose part was aborted; see ``end_aborted``."""
    request = part.tracker.held_messages.of_execution(task.request)
    if task.request.is_eager or outcomes.is_a(error, Exception):
        part.end(*outcomes.failure(SystemExit() if error is None else error))
    elif request is not None and error is not None and not _is_reported(request, task, error):
        _pass_to_celery(request, error, lambda: part.end(*outcomes.failure(error)), part.binding.log_extra)


def _report(run: Run, request: Any, error: BaseException) -> None:
    running.attach(request._context, run)  # Celery sends its signals about the exception with this one
    _pass_to_celery(request, error, lambda: run.fail(error), run.log_extra)


def _pass_to_celery(
    request: Any, error: BaseException, end: Callable[[], object], log_extra: Mapping[str, Any]
) -> None:
    """Pass the exception to Celery as a prefork child does, which acknowledges or requeues the message."""
    exits = outcomes.is_a(error, SystemExit) or outcomes.is_a(error, KeyboardInterrupt)
    if not exits:  # Celery may requeue or retry a task that exits
        end()
    try:
        request.on_failure(ExceptionInfo((type(error), error, error.__traceback__)))
    except Exception:
        name = type(error).__name__
        logger.exception("Celery cannot record that task %s raised %s", request.id, name, extra=log_extra)
        end()
