"""What a job handle knows of its job: its name, its record, and its phase."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from celery_statemanager.integration.installed import Tracker
from celery_statemanager.overview import overview
from celery_statemanager.records import JobRecord, to_datetime
from celery_statemanager.retention import current


class JobHandle:
    """One incarnation of a job, as its record describes it."""

    def __init__(self, tracker: Tracker, record: JobRecord) -> None:
        self._tracker = tracker
        self._record = record

    @property
    def id(self) -> str:
        """The name of the job."""
        return self._record.job_id

    @property
    def run_token(self) -> str | None:
        """The token that distinguishes this run from others of the same job_id."""
        return self._record.run_token

    @property
    def num_tasks(self) -> int:
        """The number of rows."""
        return self._record.num_tasks

    @property
    def metadata(self) -> dict[str, Any]:
        """A copy of the JSON object that was submitted with the job; empty if there was none."""
        found: dict[str, Any] = json.loads(self._record.metadata or "{}")
        return found

    @property
    def created_at(self) -> datetime:
        """The UTC time at which the job was created, by the store's clock."""
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
        - ``paused``: the rows that have not begun are held back.
        - ``failing``: a cell has failed or was not run, and the job has not settled.
        - ``finished``: the job has settled, and its success was decided.
        - ``failed``: the job has settled without success.
        - ``cancelled``: the job was cancelled, also while running tasks have not stopped.

        Raises: JobNotFound, StoreError.
        """
        return overview(self._tracker.store, self._record.ref).phase.value

    def __repr__(self) -> str:
        token = "" if self.run_token is None else f", run {self.run_token!r}"
        return f"<Job {self.id!r}{token}, {self.num_tasks} tasks>"
