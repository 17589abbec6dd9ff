"""``self.state``: what a running task says of itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from celery import current_task

from celery_statemanager.errors import ConfigurationError, StoreError
from celery_statemanager.integration.task.errors import interrupting
from celery_statemanager.integration.task.manager import manager_of
from celery_statemanager.integration.task.progress import to_progress
from celery_statemanager.integration.task.run import Run, run_of
from celery_statemanager.limits import check_message, check_size, check_status, encode_payload
from celery_statemanager.manager import Manager
from celery_statemanager.models import State
from celery_statemanager.records import Write

logger = logging.getLogger(__name__)


class TaskState:
    """The state of the execution that holds it; false, and every call does nothing, where nothing is tracked.

    A write that is refused raises a Celery ``Ignore``: ``AttemptSuperseded`` when another attempt owns the cell,
    ``BeginRefused`` when the store was away as this one began and it may not begin, ``JobCancelled``,
    ``JobNotFound``. While the store is down, writes return None and are made later, the newest of each cell, unless
    ``statemanager_on_store_error`` is ``"raise"``.
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
        """The job's name."""
        return self._run.binding.ref.key.job_id if self._run else None

    @property
    def task_index(self) -> int | None:
        """The row."""
        return self._run.binding.task_index if self._run else None

    @property
    def tag(self) -> str | None:
        """The column."""
        return self._run.binding.tag if self._run else None

    @property
    def attempt(self) -> int | None:
        """The number of this execution; None until the store has given one."""
        return self._run.attempt if self._run else None

    @property
    def num_tasks(self) -> int | None:
        """The job's number of rows."""
        return self.manager.num_tasks if self._run else None

    @property
    def manager(self) -> Manager:
        """The Manager of this execution: bound to this row; under this tag it writes as this execution does.

        Raises: JobNotFound, StoreError; RuntimeError where nothing is tracked.
        """
        if self._run is None:
            raise RuntimeError(
                "this task runs outside of a job: self.state is false here, ask before using its manager"
            )
        return manager_of(self._run)

    def set(self, status: int, message: str | None = None, payload: Mapping[str, Any] | None = None) -> State | None:
        """Write a status at once; None where nothing is tracked.

        Raises: TypeError, ValueError, and as the class says.
        """
        run = self._run
        if run is None:
            return None
        status, text = check_status(status), encode_payload(payload)
        check_size(check_message(message), text, run.tracker.settings.max_state_bytes)
        run.held_progress = None
        return _said(run, Write.state(*run.cell, status, message, text))

    def progress(self, done: float, total: float, message: str | None = None) -> State | None:
        """Write ``done`` of ``total``; return None where nothing is tracked, or when the write is held back.

        At most one write per ``statemanager_progress_interval`` reaches the store. The last one always does, at the
        latest with the end of the task. Values never fail the task: those out of range are clamped and what is no
        number is not written, with one warning per task name. Raises: as the class says.
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
        return _said(run, Write.progress(*run.cell, new.status, new.text, new.message))

    def get(self) -> State | None:
        """Read this cell; None where nothing is tracked. Raises: as the class says."""
        run = self._run
        if run is None:
            return None
        return _attempted(run, lambda: run.tracker.store.lowest(run.binding.ref, run.binding.scope))

    def synchronize(self, status: int, timeout: float | None = None) -> list[State] | None:
        """Block until every row of this tag has at least ``status``; see ``Manager.synchronize``."""
        if self._run is None:
            return None
        return self.manager.synchronize(self._run.binding.tag, status, timeout)


def _attempted(run: Run, action: Callable[[], State | None]) -> State | None:
    """Do what the store allows; a store that fails is the task's trouble only if the settings say so."""
    try:
        with interrupting():
            return action()
    except (StoreError, ConfigurationError) as error:
        if run.tracker.settings.on_store_error == "raise":
            raise
        logger.warning("the store failed; the task goes on: %s", error, extra=run.log_extra)
        return None


def _said(run: Run, request: Write) -> State | None:
    """Write what the task says; a store that is down takes it later, or fails the task if the settings say so."""
    if run.tracker.settings.on_store_error == "raise":
        return _attempted(run, lambda: run.write(request))
    return _attempted(run, lambda: run.write_or_queue(request))


def current_state() -> TaskState:
    """Give the state of the task that runs here, in a plain function as in a task; false where nothing is tracked."""
    return TaskState(run_of(current_task), getattr(current_task, "name", ""))
