"""Errors that stop a task. They are also Celery's ``Ignore``, so that ``autoretry_for`` does not retry them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from celery.exceptions import Ignore

from celery_statemanager.errors import AttemptSuperseded, BeginRefused, JobCancelled, JobNotFound, TaskStalled


class TaskSuperseded(AttemptSuperseded, Ignore):
    """Another attempt owns the cell of this task, which must stop."""


class TaskRefused(BeginRefused, Ignore):
    """A write found that this delivery must not begin; at its begin the store was unavailable. The task must stop."""


class TaskCancelled(JobCancelled, Ignore):
    """The job was cancelled, and the task must stop."""


class StalledTask(TaskStalled, Ignore):
    """The task has stalled, and its policy is to stop."""


class TaskJobGone(JobNotFound, Ignore):
    """The job was deleted or replaced by a newer run, and the task must stop."""


@contextmanager
def interrupting_for_job() -> Iterator[None]:
    """Convert errors about the whole job to the classes of this module; leave those about one cell unchanged."""
    try:
        yield
    except JobCancelled as error:
        raise TaskCancelled(*error.args) from None
    except JobNotFound as error:
        raise TaskJobGone(*error.args) from None


@contextmanager
def interrupting() -> Iterator[None]:
    """Convert errors about the running task's own cell or job to the classes of this module."""
    try:
        with interrupting_for_job():
            yield
    except AttemptSuperseded as error:
        raise TaskSuperseded(*error.args) from None
    except BeginRefused as error:
        raise TaskRefused(*error.args) from None
    except TaskStalled as error:
        raise StalledTask(*error.args) from None
