"""The Manager of a running task, which writes as the attempt of that task."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from celery_statemanager.integration.task.errors import interrupting, interrupting_for_job
from celery_statemanager.integration.task.run import Run
from celery_statemanager.limits import check_name
from celery_statemanager.manager import Manager
from celery_statemanager.models import State, Status
from celery_statemanager.records import Write
from celery_statemanager.retention import current

Method = TypeVar("Method", bound=Callable[..., Any])


def manager_of(run: Run) -> Manager:
    """Return the Manager of an execution; the first call creates it and reads the job. Raises: JobNotFound."""
    with run.manager_lock:
        if run.manager is None:
            run.manager = RunManager(run)
        return run.manager


def _stopping(method: Method) -> Method:
    """Decorate a method to raise errors that stop the task."""

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with interrupting():
            return method(*args, **kwargs)

    return call  # type: ignore[return-value] # it has the same parameters


class RunManager(Manager):
    """A Manager that writes the task's own tag as the attempt of the task, and does not end this attempt."""

    def __init__(self, run: Run) -> None:
        store, binding = run.tracker.store, run.binding
        with interrupting():
            job = current(store, binding.ref)
        super().__init__(store, job, binding.task_index, max_state_bytes=run.tracker.settings.max_state_bytes)
        self._run = run

    def begin(self, tag: str) -> int:
        """Return the attempt of the task for its own tag; see ``Manager.begin`` for other tags."""
        if check_name("tag", tag) != self._run.binding.tag:
            with interrupting_for_job():
                return super().begin(tag)
        with interrupting():
            if self._run.attempt is None:  # the store was unavailable when the task began
                return self._run.write(Write(*self._run.cell, int(Status.STARTED), keep_payload=True)).attempt
            return self._run.attempt

    get_state = _stopping(Manager.get_state)
    list_states = _stopping(Manager.list_states)
    summary = _stopping(Manager.summary)
    subscribe = _stopping(Manager.subscribe)
    synchronize = _stopping(Manager.synchronize)
    tombstone_job = _stopping(Manager.tombstone_job)
    delete_job = _stopping(Manager.delete_job)

    def _send(self, request: Write) -> State:
        if request.tag != self._run.binding.tag:
            with interrupting_for_job():
                return super()._send(request)
        with interrupting():
            request.ends_attempt = False
            return self._run.write(request)
