"""The Manager of a running task: bound to its row and its attempt, and one per execution."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from celery_statemanager.integration.task.errors import interrupting
from celery_statemanager.integration.task.run import Run
from celery_statemanager.limits import check_name
from celery_statemanager.manager import Manager
from celery_statemanager.models import State, Status
from celery_statemanager.records import Write
from celery_statemanager.retention import current

Method = TypeVar("Method", bound=Callable[..., Any])


def manager_of(run: Run) -> Manager:
    """Return the Manager of an execution, which reads the job when it is first asked for. Raises: JobNotFound."""
    with run.manager_lock:
        if run.manager is None:
            run.manager = RunManager(run)
        return run.manager


def _stopping(method: Method) -> Method:
    """Make a method's refusals stop the task that calls it."""

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with interrupting():
            return method(*args, **kwargs)

    return call  # type: ignore[return-value] # of the same parameters


class RunManager(Manager):
    """A Manager inside a task: under the task's own tag it writes as the task's attempt and never ends it."""

    def __init__(self, run: Run) -> None:
        store, binding = run.tracker.store, run.binding
        with interrupting():
            job = current(store, binding.ref)
        super().__init__(store, job, binding.task_index, max_state_bytes=run.tracker.settings.max_state_bytes)
        self._run = run

    def begin(self, tag: str) -> int:
        """Return the attempt of the task itself under its own tag; see ``Manager.begin`` for others."""
        with interrupting():
            if check_name("tag", tag) != self._run.binding.tag:
                return super().begin(tag)
            if self._run.attempt is None:  # the store was away as the task began
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
        with interrupting():
            if request.tag != self._run.binding.tag:
                return super()._send(request)
            request.ends_attempt = False
            return self._run.write(request)
