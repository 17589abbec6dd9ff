"""``self.state``: the state of a running task."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

from celery import current_task

from celery_statemanager.deadline import Deadline
from celery_statemanager.errors import AttemptSuperseded, ConfigurationError, StoreError, StoreUnavailable
from celery_statemanager.integration.task.errors import interrupting
from celery_statemanager.integration.task.manager import manager_of
from celery_statemanager.integration.task.progress import to_progress
from celery_statemanager.integration.task.run import Run
from celery_statemanager.integration.task.running import serving
from celery_statemanager.limits import check_message, check_size, check_status, encode_payload
from celery_statemanager.manager import Manager
from celery_statemanager.models import State
from celery_statemanager.records import Write

logger = logging.getLogger(__name__)


class TaskState:
    """The state of one execution. If the execution is untracked, it is false and its methods have no effect.

    A rejected write raises an error that is also a Celery ``Ignore`` and stops the task:

    - ``AttemptSuperseded``: another attempt owns the cell.
    - ``BeginRefused``: the store was unavailable when the task began, and the task must not run.
    - ``JobCancelled``: the job was cancelled.
    - ``JobNotFound``: the job was deleted or replaced by a newer run.
    - ``TaskStalled``: nothing was written for ``stall_after`` seconds, and ``on_stall`` is ``"stop"``.

    While the store is unavailable, writes return None. Only the newest is kept, and it is written later. With
    ``statemanager_on_store_error = "raise"`` such a write raises ``StoreUnavailable`` instead. ``get`` never returns
    None for a store that did not answer, because a task would then begin again without its checkpoint.
    """

    def __init__(self, run: Run | None, task_name: str = "") -> None:
        self._run = None if run is None or run.binding.is_callback else run
        self._task_name = task_name

    def __bool__(self) -> bool:
        return self._run is not None

    def __repr__(self) -> str:
        place = f"job {self.job_id!r}, task {self.task_index}, {self.tag!r}" if self else "no job"
        return f"<TaskState of {place}>"

    @property
    def job_id(self) -> str | None:
        """The name of the job."""
        return self._run.binding.ref.key.job_id if self._run else None

    @property
    def task_index(self) -> int | None:
        """The row of the task."""
        return self._run.binding.task_index if self._run else None

    @property
    def tag(self) -> str | None:
        """The column of the task."""
        return self._run.binding.tag if self._run else None

    @property
    def attempt(self) -> int | None:
        """The number of this attempt; None until the store has assigned it."""
        return self._run.attempt if self._run else None

    @property
    def num_tasks(self) -> int | None:
        """The number of rows of the job."""
        return self.manager.num_tasks if self._run else None

    @property
    def manager(self) -> Manager:
        """The Manager of this row. Under the task's own tag it writes as this attempt.

        Raises: JobNotFound; StoreError; RuntimeError – the execution is untracked.
        """
        if self._run is None:
            raise RuntimeError(
                "this execution is untracked and has no Manager: test 'if self.state' before using self.state.manager"
            )
        return manager_of(self._run)

    def set(self, status: int, message: str | None = None, payload: Mapping[str, Any] | None = None) -> State | None:
        """Write a status at once and return the new state; None if the execution is untracked.

        Raises: TypeError, ValueError, and the errors listed in the class.
        """
        run = self._run
        if run is None:
            return None
        status, message, text = check_status(status), check_message(message), encode_payload(payload)
        check_size(message, text, run.tracker.settings.max_state_bytes)
        run.held_progress = None
        return _write(run, Write.state(*run.cell, status, message, text))

    def progress(self, done: float, total: float, message: str | None = None) -> State | None:
        """Write ``done`` of ``total`` and return the new state; None if it is untracked or the write is postponed.

        At most one write per ``statemanager_progress_interval`` reaches the store. The last one is always written, at
        the latest at the end of the task. Invalid values never fail the task: values out of range are clamped, and
        values that are not numbers are not written. Both are logged once per task name. If a sweep has marked the
        attempt although it runs, progress is kept for the end. Raises: the errors listed in the class.
        """
        run = self._run
        if run is None:
            return None
        limit = run.tracker.settings.max_state_bytes
        new = to_progress(done, total, message, max_bytes=limit, task=self._task_name, log_extra=run.log_extra)
        if new is None:
            return None
        if not run.progress_is_due():
            run.held_progress = (new.text, new.message)
            return None
        run.held_progress = None
        try:
            return _write(run, Write.progress(*run.cell, new.status, new.text, new.message))
        except AttemptSuperseded:
            if not run.awaits_end():
                raise
            run.held_progress = (new.text, new.message)  # a sweep presumed the worker dead; the end will be accepted
            return None

    def get(self) -> State | None:
        """Return the stored state of this cell; None only if the execution is untracked.

        If the store fails, return the state that it returned last for this attempt: at its begin, or at a later write.
        If the store could not number this attempt either, wait for it up to ``statemanager_store_timeout`` seconds.

        Raises: StoreUnavailable, StoreError – the store failed, and there is no such state, or
            ``statemanager_on_store_error`` is ``"raise"``; the errors listed in the class.
        """
        return None if self._run is None else _read(self._run)

    def synchronize(self, status: int, timeout: float | None = None) -> list[State] | None:
        """Block until every row of this tag has at least ``status``; see ``Manager.synchronize``."""
        if self._run is None:
            return None
        return self.manager.synchronize(self._run.binding.tag, status, timeout)


def _read(run: Run) -> State:
    """Read the cell of an execution; see ``TaskState.get``."""
    deadline, settings = Deadline(run.tracker.settings.store_timeout), run.tracker.settings
    while True:
        try:
            with interrupting():
                return run.tracker.store.lowest(run.binding.ref, run.binding.scope)
        except (StoreError, ConfigurationError) as error:
            known = run.known_state()
            if known is None and isinstance(error, StoreUnavailable):
                deadline.pause(error)
                continue
            if known is None or settings.on_store_error == "raise":
                raise
            logger.warning("self.state.get() returns the last known state: %s", error, extra=run.log_extra)
            return known


def _or_none(run: Run, action: Callable[[], State | None]) -> State | None:
    """Call ``action``; if the store fails, raise or return None as ``statemanager_on_store_error`` says."""
    try:
        with interrupting():
            return action()
    except (StoreError, ConfigurationError) as error:
        if run.tracker.settings.on_store_error == "raise":
            raise
        logger.warning("the store failed, the task continues: %s", error, extra=run.log_extra)
        return None


def _write(run: Run, request: Write) -> State | None:
    raises = run.tracker.settings.on_store_error == "raise"
    return _or_none(run, lambda: run.write(request) if raises else run.write_or_queue(request))


def current_state() -> TaskState:
    """Return the state of the current task, in plain functions too; it is false if the task is untracked."""
    return TaskState(serving(current_task), getattr(current_task, "name", ""))


@cache
def _log_deadlock_risk() -> None:
    run = serving(current_task)
    logger.warning(
        "a task waits for others of its job: with fewer free worker slots than rows, those it waits for never begin; "
        "use a chain, a callback, or one worker slot per row (logged once per process)",
        extra=run.log_extra if run else None,
    )


@contextmanager
def while_waiting() -> Iterator[None]:
    """Log once that a task which waits for other tasks may block the pool, and count the wait of a task as moving."""
    if current_task and not current_task.request.is_eager and not current_task.request.called_directly:
        _log_deadlock_risk()
    run = serving(current_task)
    with nullcontext() if run is None or run.motion is None else run.motion.waits_in_barrier():
        yield
