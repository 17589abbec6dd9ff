"""Signal handlers of Celery, one for each signal; each makes one state write.

In the process that runs the body, a handler finds the ``Run`` that ``task_prerun`` set on the request and writes at
once. Without a ``Run`` it is in the worker's main process, where it only enqueues the write (``worker.main``).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery import current_task, signals
from celery.exceptions import Reject
from celery.utils.dispatch import Signal

from celery_statemanager import barrier
from celery_statemanager.errors import JobCancelled, TaskStalled
from celery_statemanager.integration import publication, results, spawned
from celery_statemanager.integration.binding import HEADER, PART_HEADER, binding_of
from celery_statemanager.integration.installed import tracker_of
from celery_statemanager.integration.outbox import capture, changed
from celery_statemanager.integration.submission.calls import NOT_TRACKED, has_own_strategy
from celery_statemanager.integration.task import outcomes, running
from celery_statemanager.integration.task.aborted import end_aborted, end_aborted_part
from celery_statemanager.integration.task.errors import TaskJobGone, TaskRefused, TaskSuperseded
from celery_statemanager.integration.task.replacement import end_part, mark_message, running_part, start_part
from celery_statemanager.integration.task.run import Run, run_of, start_run
from celery_statemanager.integration.task.state import while_waiting
from celery_statemanager.integration.worker import main
from celery_statemanager.integration.worker.duplicates import drop_if_outdated
from celery_statemanager.models import Status

_aborted = threading.local()
"""In ``task_id``, the last execution of this thread that raised outside of its body, such as in ``on_retry``: after
``task_postrun``, Celery reports it again as a failure, without its request."""


def connect() -> None:
    """Connect the handlers; may be called again."""
    _connect(_HANDLERS)
    if while_waiting not in barrier.around_waiting:
        barrier.around_waiting.append(while_waiting)


def _connect(handlers: list[tuple[Signal, Any]]) -> None:
    for signal, handler in handlers:
        signal.connect(handler, weak=False, dispatch_uid=f"celery_statemanager.{handler.__name__}")


@cache
def _connect_endings() -> None:
    """Connect the handlers that slow down every task; called when the process runs its first tracked task."""
    _connect(_ENDINGS)


def _repeated_after_limit(handler: Callable[..., None]) -> Callable[..., None]:
    """Call a handler once more if a soft time limit interrupts it: Celery only logs what a handler raises."""

    @wraps(handler)
    def call(**arguments: Any) -> None:
        try:
            return handler(**arguments)
        except SoftTimeLimitExceeded:
            pass
        return handler(**arguments)  # not in the except clause: handlers look at the exception of the task

    return call


@_repeated_after_limit
def _on_prerun(task: Any = None, **_: Any) -> None:
    _aborted.task_id = None
    binding = binding_of(task.request)
    if binding is not None:
        _connect_endings()
        start_run(task, binding)
    elif start_part(task):
        _connect_endings()


@_repeated_after_limit
def _on_success(sender: Any = None, result: Any = None, **_: Any) -> None:
    run = run_of(sender)
    if run is not None:
        run.finish(result)


@_repeated_after_limit
def _on_failure(sender: Any = None, task_id: str = "", exception: Any = None, **_: Any) -> None:
    run, part = run_of(sender), running_part(sender)
    if run is not None:
        run.fail(outcomes.original(exception, sys.exc_info()[1]))
        return
    if part is not None:
        part.end(*outcomes.failure(outcomes.original(exception, sys.exc_info()[1])))
        return
    if getattr(_aborted, "task_id", None) == task_id:
        return
    status, message = outcomes.failure(exception)
    if outcomes.is_requeued(sender, exception):
        main.report_next_delivery(sender.app, task_id, None, f"requeued after {message}", more_retries=0)
    else:
        main.report(sender.app, task_id, None, status, message, began=True)


@_repeated_after_limit
def _on_retry(sender: Any = None, request: Any = None, reason: Any = None, **_: Any) -> None:
    if reason is None:  # a shutdown stopped the task; whether it runs again is unknown
        return
    run = run_of(sender)
    message = outcomes.retry(reason, request.retries or 0, sender.max_retries)
    if run is not None and request.id not in run.sent and publication.may_hold_back(sender.app, sender.name):
        run.end(int(Status.REJECTED), publication.not_published(sender.app, sender.name))
    elif run is not None:
        run.await_delivery(message, run.delivery._replace(retries=run.delivery.retries + 1))
    else:
        main.report_next_delivery(sender.app, request.id, request, message, more_retries=1)


@_repeated_after_limit
def _on_postrun(task: Any = None, state: str | None = None, retval: Any = None, **_: Any) -> None:
    run, part, error = run_of(task), running_part(task), sys.exc_info()[1]
    if run is None:
        if part is not None and state is None:
            end_aborted_part(part, task, error)
        else:
            end_part(task, state, retval)
        return
    run.tracker.held_messages.remove_body(run)
    if state is None:
        end_aborted(run, task, error)
        if outcomes.is_a(error, Exception):
            _aborted.task_id = run.binding.celery_task_id
    else:
        _end_reported(run, task, state, retval)
    running.leave(run)


def _end_reported(run: Run, task: Any, state: str, retval: Any) -> None:
    """Write the outcome that Celery reports, unless the handler of the outcome's own signal has written it."""
    if run.ended:  # the usual case
        return
    if state == "IGNORED":
        _on_ignored(run, retval)
    elif state == "REJECTED" and isinstance(retval, Reject):
        requeue = outcomes.asks_for_requeue(retval)
        if requeue and task.acks_late and not task.request.is_eager:
            run.await_delivery(outcomes.requeue(retval), run.delivery)
        else:
            run.end(int(Status.REJECTED), outcomes.rejection(retval, not_requeued=requeue))
    elif state == "SUCCESS":  # from here on: something prevented the handler of the outcome's own signal
        _on_success(sender=task, result=retval)
    elif state == "FAILURE":
        run.fail(retval)
    elif state == "RETRY":
        _on_retry(sender=task, request=task.request, reason=retval)


def _on_ignored(run: Run, retval: Any) -> None:
    if any(outcomes.is_a(retval, kind) for kind in (TaskSuperseded, TaskRefused, TaskJobGone)):
        run.ended = True
    elif outcomes.is_a(retval, JobCancelled):
        run.end(int(Status.CANCELLED), retval.reason, keep_app_status=False)
    elif outcomes.is_a(retval, TaskStalled):
        run.end(int(Status.TIMED_OUT), retval.reason, keep_app_status=False)
    elif run.replaced_by is not None:
        replacement = run.delivery._replace(replacements=run.delivery.replacements + 1, retries=0)
        run.await_delivery(f"replaced by {run.replaced_by}", replacement)
    else:
        run.end(int(Status.REJECTED), outcomes.ignored(retval))


def _on_received(request: Any = None, **_: Any) -> None:
    tracker = tracker_of(request.app)
    if tracker is None:
        return
    binding = tracker.held_messages.add(request)
    if binding is not None:
        results.on_received(tracker, binding, request)
        changed.attach(request)
        drop_if_outdated(tracker, binding, request)
    if has_own_strategy(request.task):  # its submitter did not know the task
        why = f"not tracked: {NOT_TRACKED}"
        main.report(request.app, request.id, request.request_dict, int(Status.REJECTED), why, began=False)


def _on_revoked(
    sender: Any = None, request: Any = None, terminated: bool = False, expired: bool = False, **_: Any
) -> None:
    status, message = (Status.EXPIRED, "expired before it began") if expired else (Status.REVOKED, "revoked")
    main.report(sender.app, request.id, request, int(status), message, began=terminated)


def _on_unknown(sender: Any = None, message: Any = None, name: str = "", **kwargs: Any) -> None:
    why = f"task {name!r} is not registered in the worker"
    main.report(sender.app, kwargs["id"], message.headers, int(Status.REJECTED), why, began=False)


def _on_rejected(sender: Any = None, message: Any = None, exc: Any = None, **_: Any) -> None:
    """Report a message that the worker cannot read: it names no task, or has a format that is not accepted."""
    headers = message.headers or {}
    why = "rejected by the worker" if exc is None else f"rejected by the worker: {outcomes.describe(exc)}"
    main.report(sender.app, headers.get("id", ""), headers, int(Status.REJECTED), why, began=False)


@_repeated_after_limit
def _on_publish(
    sender: str | None = None, body: Any = None, headers: Any = None, properties: Any = None, **place: Any
) -> None:
    """Add the mark that a message of the running task has lost: a retry, a replacement, or the next task of its chain.

    Also remove the expiration from the properties of a marked message, because RabbitMQ would drop the message without
    a signal. By the header, which stays, the worker rejects an expired message and reports it.
    """
    run = run_of(current_task)
    if run is not None:
        run.note_sent(capture.task_id_of(headers, body))
    headers.pop(changed.ENVELOPE, None)  # Celery itself sends a request's headers when it retries for a lost child
    marked = HEADER in headers or PART_HEADER in headers
    if not marked and current_task:
        marked = mark_message(current_task, str(sender), headers, body)
    if marked and properties:
        properties.pop("expiration", None)
    if run is not None and capture.task_id_of(headers, body) == run.binding.celery_task_id:
        place = {**(properties or {}), **place}
        kept = changed.mark_following(current_task, run.binding, str(sender), body, headers, place)
        run.following = kept or run.following


def _on_published(headers: Any = None, body: Any = None, **_: Any) -> None:
    """Record that the running task has published its own retry."""
    run = run_of(current_task)
    if run is None:
        return
    task_id, retries = capture.task_id_of(headers, body), capture.retries_of(headers, body)
    if task_id == run.binding.celery_task_id and retries > run.delivery.retries:
        run.retry_sent = run.delivery._replace(retries=retries)


_HANDLERS: list[tuple[Signal, Any]] = [
    (signals.before_task_publish, _on_publish),
    (signals.task_received, _on_received),
    (signals.task_prerun, _on_prerun),
    (signals.task_failure, _on_failure),
    (signals.task_retry, _on_retry),
    (signals.task_revoked, _on_revoked),
    (signals.task_unknown, _on_unknown),
    (signals.task_rejected, _on_rejected),
    (signals.worker_process_init, spawned.adopt_originals),
    (signals.worker_init, main.on_init),
    (signals.worker_shutting_down, main.on_stopping),
    (signals.worker_process_shutdown, main.on_child_shutdown),
    (signals.beat_init, main.on_beat),
]

_ENDINGS: list[tuple[Signal, Any]] = [
    (signals.after_task_publish, _on_published),
    (signals.task_success, _on_success),
    (signals.task_postrun, _on_postrun),
]
