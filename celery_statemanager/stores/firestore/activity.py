"""When a job was last written: told to its document once a minute, not at each write; and once after it was hidden."""

from __future__ import annotations

from dataclasses import replace

from celery_statemanager.errors import StoreError
from celery_statemanager.records import JobRef
from celery_statemanager.stores.firestore import requests
from celery_statemanager.stores.firestore.database import Database
from celery_statemanager.stores.firestore.view import Done

EVERY = 45_000_000
"""Microseconds; contract: at most a minute old."""


class Activity:
    """Tells."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def note(self, ref: JobRef, done: Done | None) -> None:
        """Take note of a write that was done; trouble is left to the next one."""
        if done is None or done.job.foreign:
            return
        job, now = done.job.job, self._database.now()
        hidden = job.tombstoned_at is not None and job.last_activity <= job.tombstoned_at
        if now - job.last_activity < EVERY and not hidden:
            return
        done.job.job = replace(job, last_activity=now)
        name = self._database.names.job(ref.key)
        try:
            self._database.commit([requests.touch_time(name, "lastActivity")], self._database.deadline())
        except StoreError:
            return
