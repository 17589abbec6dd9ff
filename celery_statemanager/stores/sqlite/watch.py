"""Live changes of a job, found by polling SQLite's counter of commits."""

from __future__ import annotations

import sqlite3
import threading
import time

from celery_statemanager.models import Scope
from celery_statemanager.records import Batch, JobRecord, JobRef
from celery_statemanager.stores.base import Watch
from celery_statemanager.stores.sqlite.data_version import DataVersion, DataVersionPoller
from celery_statemanager.stores.sqlite.jobs import JobCache
from celery_statemanager.stores.sqlite.listing import StateRow, list_changed, newest_change, state_of
from celery_statemanager.stores.sqlite.pool import Pool

MAX_STATES = 1_000
"""States in one batch."""

BUSY_PAUSE = 0.008
IDLE_PAUSE = 0.024
"""The shortest and the longest pause between two polls, in seconds. Pauses grow while nothing is committed."""


class SQLiteWatch(Watch):
    """A watch that holds no connection and no transaction between two polls. It works on both sides of a fork."""

    def __init__(self, pool: Pool, poller: DataVersionPoller, jobs: JobCache, ref: JobRef, scope: Scope) -> None:
        self._pool = pool
        self._poller = poller
        self._jobs = jobs
        self._ref = ref
        self._scope = scope
        self._closed = threading.Event()
        poller.notify_of_forks(self)
        self._data_version = poller.current()
        self._seq, self._revision = pool.read(self._position)

    def read(self, timeout: float) -> Batch:
        deadline = time.monotonic() + timeout
        pause, max_age = BUSY_PAUSE, 0.0
        while not self._closed.is_set():
            data_version = self._poller.current(max_age)
            if data_version != self._data_version:
                batch = self._read_changes(data_version)
                if batch.states or batch.job_changed or batch.resync:
                    return batch
                pause = BUSY_PAUSE
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self._closed.wait(min(pause, left))
            max_age = BUSY_PAUSE / 2
            pause = min(pause * 1.2, IDLE_PAUSE)
        return Batch([])

    def close(self) -> None:
        self._closed.set()

    def after_fork(self) -> None:
        """Create a new event in the child: a thread of the parent may have held the old one's lock at the fork."""
        was_closed = self._closed.is_set()
        self._closed = threading.Event()
        if was_closed:
            self._closed.set()

    def _position(self, db: sqlite3.Connection) -> tuple[int, int]:
        """Return the number of the newest change of a cell, and the job's revision."""
        cached = self._jobs.current(db, self._ref)
        return newest_change(db, cached.id), cached.job.revision

    def _changes(self, db: sqlite3.Connection) -> tuple[JobRecord, list[StateRow], bool, int]:
        """Return the job, its next changes, whether these are all, and the number of the last one."""
        cached = self._jobs.current(db, self._ref)
        rows = list_changed(db, cached.id, self._scope, self._seq, MAX_STATES)
        complete = len(rows) < MAX_STATES
        return cached.job, rows, complete, newest_change(db, cached.id) if complete else rows[-1][0]

    def _read_changes(self, data_version: DataVersion) -> Batch:
        before = self._seq
        job, rows, complete, self._seq = self._pool.read(self._changes)
        if complete:
            self._data_version = data_version
        job_changed = job.revision != self._revision
        self._revision = job.revision
        restored = self._seq < before
        return Batch([state_of(job, row) for row in rows], job_changed or restored, restored)
