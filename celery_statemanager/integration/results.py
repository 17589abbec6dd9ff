"""Successes in the result backend, of tasks whose worker died between Celery's SUCCESS and our FINISHED.

Such a task is not run again. Celery itself skips its redelivery if ``worker_deduplicate_successful_tasks`` is set, and
sends no signal then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery, Task
from celery.backends.base import DisabledBackend
from celery.states import SUCCESS

from celery_statemanager import leases
from celery_statemanager.errors import AttemptSuperseded, StateManagerError, StoreUnavailable
from celery_statemanager.integration.binding import RESULT, Binding
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.integration.outbox import publisher
from celery_statemanager.integration.outbox.values import Unavailable, pass_on
from celery_statemanager.models import Status
from celery_statemanager.records import OpenAttempt, Write
from celery_statemanager.texts import describe

logger = logging.getLogger(__name__)

MESSAGE = "its result is stored"


def has_succeeded(app: Celery, task: Task[Any, Any] | None, task_id: str) -> bool:
    """Return whether the result backend has stored SUCCESS for a task id.

    Args:
        task: None if only the id is known.

    Raises: what the backend raises.
    """
    backend = app.backend if task is None else task.backend
    # Celery reads only persistent backends too: a reply queue of rpc:// belongs to its submitter.
    if isinstance(backend, DisabledBackend) or not backend.persistent or backend.as_uri().startswith("rpc://"):
        return False
    return bool(backend.get_state(task_id) == SUCCESS)


def finish_if_succeeded(tracker: Tracker, binding: Binding, task: Task[Any, Any] | None) -> bool:
    """Return whether the result backend has stored SUCCESS for the task of a cell. If so, the cell becomes FINISHED.

    A negative status of the application stays. Raises: JobNotFound, StoreError.
    """
    try:
        if not has_succeeded(tracker.app, task, binding.celery_task_id):
            return False
    except Exception as error:  # noqa: BLE001 - a result backend raises errors of any client library
        logger.warning("cannot read the result of task %s: %s", binding.celery_task_id, error, extra=binding.log_extra)
        return False
    place = binding.tag, binding.task_index
    cell = tracker.store.get_cell(binding.ref, *place)
    if cell is not None and cell.generation != binding.generation:
        return False
    if cell is not None and (cell.open or cell.awaits_end):
        write = Write.proven(*place, attempt=cell.attempt)
    elif cell is None or not cell.final:
        write = Write.never_begun(*place, int(Status.FINISHED), MESSAGE)
    else:
        return True
    value = _pass_on(tracker, write, binding, task)
    with suppress(AttemptSuperseded):  # its own end, or another process, was faster
        _write(tracker, binding, write, partial(publisher.write, tracker, binding.ref, write, value=value))
    return True


def _write(tracker: Tracker, binding: Binding, write: Write, call: Callable[[], object]) -> None:
    """Make the write that finishes a cell; if the store does not answer, repeat it in the background.

    No other process would publish what the write may have claimed. Raises: as ``Store.write``.
    """
    try:
        call()
    except StoreUnavailable:
        name = leases.cell_name(binding.ref, write.tag, write.task_index)
        tracker.backlog.put((name, "end"), call, binding.log_extra)
        raise


def _pass_on(tracker: Tracker, write: Write, binding: Binding, task: Task[Any, Any] | None) -> str | None:
    """Set in a write that finishes a stage what its stored result implies; see ``values.pass_on``."""
    backend = tracker.app.backend if task is None else task.backend
    result: Any = None
    try:
        if binding.next is not None:
            result = backend.get_result(binding.celery_task_id)
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:
        if binding.next != RESULT:
            raise
        result = Unavailable(f"its worker died, and it cannot be read from Celery's result backend: {describe(error)}")
    return pass_on(write, binding, result, tracker.settings.max_result_bytes)


def finish_attempt(
    tracker: Tracker,
    binding: Binding,
    attempt: OpenAttempt,
    task: Task[Any, Any] | None,
    may_send: publisher.MaySend,
) -> bool:
    """Finish an open attempt if its SUCCESS is stored, and return whether it is.

    Args:
        task: None if this app does not have it.

    Raises: JobNotFound, AttemptSuperseded; as ``has_succeeded``.
    """
    if not has_succeeded(tracker.app, task, binding.celery_task_id):
        return False
    write = Write.proven(attempt.tag, attempt.task_index, attempt=attempt.cell.attempt)
    value = _pass_on(tracker, write, binding, task)
    call = partial(publisher.write, tracker, attempt.ref, write, value=value, may_send=may_send)
    _write(tracker, binding, write, call)
    return True


def redelivery_has_succeeded(tracker: Tracker, binding: Binding, task: Task[Any, Any]) -> bool:
    """Return whether an earlier delivery of the message that a task now runs has stored its result."""
    if not _was_redelivered(task.request.delivery_info):
        return False
    try:
        return finish_if_succeeded(tracker, binding, task)
    except StateManagerError as error:  # the begin that follows raises it too, and reports it
        logger.info("state not written: %s", error, extra=binding.log_extra)
        return False


def _was_redelivered(delivery_info: Any) -> bool:
    return bool(delivery_info and delivery_info.get("redelivered"))


def on_received(tracker: Tracker, binding: Binding, request: Any) -> None:
    """Finish, in the background, the cell of a redelivered message that Celery will skip without a signal."""
    conf = tracker.app.conf
    skips = conf.worker_deduplicate_successful_tasks and (conf.task_acks_late or request.task.acks_late)
    if not skips or not _was_redelivered(request.delivery_info):
        return
    name = leases.cell_name(binding.ref, binding.tag, binding.task_index)
    finish = partial(finish_if_succeeded, tracker, binding, request.task)
    tracker.backlog.put((name, "outcome"), finish, binding.log_extra)
