"""What a job handle knows of its job: its name, its record, and its phase."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, TypeVar

from celery import current_app
from typing_extensions import Self

from celery_statemanager.errors import ConfigurationError
from celery_statemanager.integration.installed import Tracker, all_trackers, tracker_of
from celery_statemanager.integration.submission.transactions import Pending
from celery_statemanager.overview import overview
from celery_statemanager.records import JobKey, JobRecord, JobRef, to_datetime
from celery_statemanager.retention import current

Handle = TypeVar("Handle", bound="JobHandle")


class JobHandle:
    """One incarnation of a job, as its record describes it.

    Handles of the same incarnation are equal. A handle is printed and formatted as the name of its job. It is pickled
    as the name of its app and the reference to the job; unpickling reads the record with the StateManager of the
    current app, or of the app with this name, and raises ``JobNotFound`` if this incarnation does not exist.

    Before the commit of the transaction in which the job was submitted, methods that use the store raise
    ``JobNotCommitted``.
    """

    def __init__(self, tracker: Tracker, record: JobRecord, pending: Pending | None = None) -> None:
        self._tracker = tracker
        self._submitted = record
        self._pending = pending

    @property
    def _record(self) -> JobRecord:
        """The record as it was read last, of a job that exists. Raises: JobNotCommitted."""
        return self._submitted if self._pending is None else self._pending.committed(self._submitted)

    @property
    def id(self) -> str:
        """The name of the job."""
        return self._submitted.job_id

    @property
    def run_token(self) -> str | None:
        """The token that distinguishes this run from others of the same job_id."""
        return self._submitted.run_token

    @property
    def num_tasks(self) -> int:
        """The number of rows."""
        return self._submitted.num_tasks

    @property
    def metadata(self) -> dict[str, Any]:
        """A copy of the JSON object that was submitted with the job; empty if there was none."""
        found: dict[str, Any] = json.loads(self._submitted.metadata or "{}")
        return found

    @property
    def created_at(self) -> datetime:
        """The UTC time at which the job was created, by the store's clock. Raises: JobNotCommitted."""
        return to_datetime(self._record.created_at)

    @property
    def settled(self) -> bool:
        """Whether every expected cell of the current generation has ended. Raises: JobNotFound, StoreError."""
        return current(self._tracker.store, self._record.ref).settled

    @property
    def phase(self) -> str:
        """The condition of the job in one word, of those that apply the last.

        - ``waiting``: no cell has begun.
        - ``running``: a cell has begun.
        - ``failing``: a cell has failed or was not run, and the job has not settled.
        - ``paused``: the rows that have not begun are held back.
        - ``finished``: the job has settled, and its success was decided.
        - ``failed``: the job has settled without success.
        - ``cancelled``: the job was cancelled, also while running tasks have not stopped.

        Raises: JobNotFound, StoreError.
        """
        return overview(self._tracker.store, self._record.ref).phase.value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, JobHandle):
            return NotImplemented
        return self._submitted.ref == other._submitted.ref

    def __hash__(self) -> int:
        return hash(self._submitted.ref)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _: Any) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self._tracker.app.main, *self._submitted.key, self._submitted.incarnation)

    def __str__(self) -> str:
        return self.id

    def __format__(self, spec: str) -> str:
        return format(self.id, spec)

    def __repr__(self) -> str:
        token = "" if self.run_token is None else f", run {self.run_token!r}"
        return f"<Job {self.id!r}{token}, {self.num_tasks} tasks>"


def _reopen(kind: type[Handle], app_name: str | None, job_id: str, run_token: str | None, incarnation: str) -> Handle:
    """Open a pickled job. Raises: ConfigurationError – no app in this process can open it; JobNotFound; StoreError."""
    here = tracker_of(current_app)
    named = (each for each in (here, *all_trackers()) if each is not None and each.app.main == app_name)
    tracker = next(named, here)  # the current app of a thread may be Celery's default app
    if tracker is None:
        raise ConfigurationError(
            f"cannot open the pickled job {job_id!r}: neither the current Celery app nor an app named {app_name!r} has "
            "a StateManager in this process; import the module that creates it before you unpickle the job"
        )
    return kind(tracker, current(tracker.store, JobRef(JobKey(job_id, run_token), incarnation)))
