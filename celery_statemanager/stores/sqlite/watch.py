"""Live changes of a job, found by polling SQLite's counter of commits."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable

from celery_statemanager.limits import parse_position
from celery_statemanager.models import Scope
from celery_statemanager.records import Batch, JobRecord, JobRef
from celery_statemanager.stores.base import Watch
from celery_statemanager.stores.sqlite.data_version import DataVersion, DataVersionPoller
from celery_statemanager.stores.sqlite.jobs import JobCache
from celery_statemanager.stores.sqlite.listing import Change, StateRow, last_change, list_changed, state_of
from celery_statemanager.stores.sqlite.location import file_identity
from celery_statemanager.stores.sqlite.pool import Pool

MAX_STATES = 1_000
"""States in one batch."""

BUSY_PAUSE = 0.008
IDLE_PAUSE = 0.024
"""The shortest and the longest pause between two polls, in seconds. Pauses grow while nothing is committed."""

_NEVER: DataVersion = (0, -1)
"""A version of the data to which no other is equal."""


class SQLiteWatch(Watch):
    """A watch that holds no connection and no transaction between two polls. It works on both sides of a fork."""

    def __init__(
        self, pool: Pool, poller: DataVersionPoller, jobs: JobCache, ref: JobRef, scope: Scope, since: str | None
    ) -> None:
        self._pool = pool
        self._poller = poller
        self._jobs = jobs
        self._ref = ref
        self._scope = scope
        self._closed = threading.Event()
        poller.notify_of_forks(self)
        position = None if since is None else parse_position(since, 3)
        self._data_version = poller.current()
        self._last, self._revision = pool.read(self._newest)
        self._restored = False
        if position is not None:
            self._go_back(*position)

    @property
    def cursor(self) -> str:
        return self._cursors([self._last])[0]

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

    def _go_back(self, number: int, changed_at: int, file: int) -> None:
        """Continue after an earlier change, unless a copy was restored since.

        A change of the copy has a later time than that of the same number before. It is no longer known if each of
        these cells has changed again and the file is the same.
        """
        self._data_version, self._revision = _NEVER, -1
        found, found_at = self._pool.read(lambda db: last_change(db, self._jobs.current(db, self._ref).id, number))
        same = found_at == changed_at if found == number else found_at <= changed_at
        self._restored = not same or number > self._last[0] or file != _file_number(self._pool.path)
        if not self._restored:
            self._last = number, changed_at

    def _cursors(self, changes: Iterable[Change]) -> list[str]:
        file = _file_number(self._pool.path)
        return [f"{number}-{changed_at}-{file}" for number, changed_at in changes]

    def _newest(self, db: sqlite3.Connection) -> tuple[Change, int]:
        """Return the newest change of a cell, and the job's revision."""
        cached = self._jobs.current(db, self._ref)
        return last_change(db, cached.id), cached.job.revision

    def _changes(self, db: sqlite3.Connection) -> tuple[JobRecord, list[StateRow], bool, Change]:
        """Return the job, its next changes, whether these are all, and the last one."""
        cached = self._jobs.current(db, self._ref)
        rows = list_changed(db, cached.id, self._scope, self._last[0], MAX_STATES)
        complete = len(rows) < MAX_STATES
        return cached.job, rows, complete, last_change(db, cached.id) if complete else rows[-1][:2]

    def _read_changes(self, data_version: DataVersion) -> Batch:
        before = self._last
        job, rows, complete, self._last = self._pool.read(self._changes)
        if complete:
            self._data_version = data_version
        job_changed = job.revision != self._revision
        self._revision = job.revision
        restored = self._restored or self._last[0] < before[0]
        self._restored = False
        cursors = self._cursors(row[:2] for row in rows)
        return Batch([state_of(job, row) for row in rows], job_changed or restored, restored, cursors)


def _file_number(path: str) -> int:
    """Return a number that another file in the place of this one does not have; the same in every process."""
    identity = file_identity(path)
    return 0 if identity is None else identity[1]
