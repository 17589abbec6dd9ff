"""Live changes of a job, found by polling a counter that SQLite keeps of everybody's commits."""

from __future__ import annotations

import sqlite3
import threading
import time

from celery_statemanager.models import Scope
from celery_statemanager.records import Batch, JobRecord, JobRef
from celery_statemanager.stores.base import Watch
from celery_statemanager.stores.sqlite.data_version import Beat, DataVersionPoller
from celery_statemanager.stores.sqlite.jobs import Jobs
from celery_statemanager.stores.sqlite.listing import Row, changed, newest_change, state_of
from celery_statemanager.stores.sqlite.pool import Pool

MOST_STATES = 1_000
BUSY_PAUSE = 0.008
IDLE_PAUSE = 0.024


class SQLiteWatch(Watch):
    """Holds no connection and no transaction between two looks; goes on in both processes after a fork."""

    def __init__(self, pool: Pool, data_version: DataVersionPoller, jobs: Jobs, ref: JobRef, scope: Scope) -> None:
        self._pool = pool
        self._pulse = data_version
        self._jobs = jobs
        self._ref = ref
        self._scope = scope
        self._closed = threading.Event()
        data_version.tell_of_forks(self)
        self._beat = data_version.beat()
        self._seq, self._revision = pool.read(self._place)

    def read(self, timeout: float) -> Batch:
        deadline = time.monotonic() + timeout
        pause, max_age = BUSY_PAUSE, 0.0
        while not self._closed.is_set():
            beat = self._pulse.beat(max_age)
            if beat != self._beat:
                batch = self._look(beat)
                if batch.states or batch.job_changed:
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
        """Take a new event in the child: the old one's lock may have been held by a thread that is no more."""
        was_closed = self._closed.is_set()
        self._closed = threading.Event()
        if was_closed:
            self._closed.set()

    def _place(self, db: sqlite3.Connection) -> tuple[int, int]:
        """Give where the job's changes have come to: those of its cells, and its own."""
        known = self._jobs.current(db, self._ref)
        return newest_change(db, known.id), known.job.revision

    def _changes(self, db: sqlite3.Connection) -> tuple[JobRecord, list[Row], bool, int]:
        """Give the job, its next changes, whether these are all, and the number of the last."""
        known = self._jobs.current(db, self._ref)
        rows = changed(db, known.id, self._scope, self._seq, MOST_STATES)
        complete = len(rows) < MOST_STATES
        return known.job, rows, complete, newest_change(db, known.id) if complete else rows[-1][0]

    def _look(self, beat: Beat) -> Batch:
        job, rows, complete, self._seq = self._pool.read(self._changes)
        if complete:
            self._beat = beat
        job_changed = job.revision != self._revision
        self._revision = job.revision
        return Batch([state_of(job, row) for row in rows], job_changed)
