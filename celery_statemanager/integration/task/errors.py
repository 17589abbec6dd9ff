"""Our refusals as a task sees them: also Celery's ``Ignore``, so that no autoretry takes them for failures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from celery.exceptions import Ignore

from celery_statemanager.errors import AttemptSuperseded, BeginRefused, JobCancelled, JobNotFound


class TaskSuperseded(AttemptSuperseded, Ignore):
    """Another attempt owns this task's cell: stop."""


class TaskRefused(BeginRefused, Ignore):
    """This delivery could not ask whether it may begin, and hears from a later write that it may not: stop."""


class TaskCancelled(JobCancelled, Ignore):
    """The job was cancelled: stop."""


class TaskJobGone(JobNotFound, Ignore):
    """The job was deleted, or replaced by a newer run: stop."""


@contextmanager
def interrupting() -> Iterator[None]:
    """Raise our refusals as their Celery kind."""
    try:
        yield
    except AttemptSuperseded as error:
        raise TaskSuperseded(*error.args) from None
    except BeginRefused as error:
        raise TaskRefused(*error.args) from None
    except JobCancelled as error:
        raise TaskCancelled(*error.args) from None
    except JobNotFound as error:
        raise TaskJobGone(*error.args) from None
