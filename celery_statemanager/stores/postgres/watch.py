"""Watches of the changes of a job. They read after each notification, and without one after increasing pauses."""

# ruff: noqa: S608 - only names of our own columns and tables are interpolated; every value is bound

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import Any

from celery_statemanager.errors import JobNotFound, StoreUnavailable
from celery_statemanager.models import Scope
from celery_statemanager.records import Batch, JobRecord, JobRef
from celery_statemanager.stores.base import Watch
from celery_statemanager.stores.postgres.connection import Connection
from celery_statemanager.stores.postgres.jobs import JobCache
from celery_statemanager.stores.postgres.listener import Listener, Signal
from celery_statemanager.stores.postgres.listing import STATE, StateRow, state_of
from celery_statemanager.stores.postgres.pool import Pool
from celery_statemanager.stores.postgres.position import Position, Snapshot

MAX_STATES = 1_000
"""States in one batch."""

FIRST_PAUSE = 0.01
POLL_PAUSE = 0.1
LISTEN_PAUSE = 2.0
"""Seconds between two reads without a notification: the first pause after a change, and the longest ones.

Writers leave out a notification while another one is on its way, so a change may follow its notification.
"""

LOOKBACK = 600_000_000
"""Microseconds that the transaction of a write takes at most."""

_HEAD = """
SELECT s.seen::text, j.revision,
  coalesce((
    SELECT n."timestamp" FROM {cell} n WHERE n.job = j.id ORDER BY n.job DESC, n."timestamp" DESC LIMIT 1
  ), j.created_at)
"""
_FROM = "FROM {job} j CROSS JOIN (SELECT pg_current_snapshot() AS seen) s"
_WHERE = "WHERE j.id = %s AND j.incarnation = %s"
_END = f"{_HEAD} {_FROM} {_WHERE}"
_IN_TAG = " AND c.tag IN (SELECT t.id FROM {tag} t WHERE t.job = j.id AND t.name = %s)"
_IN_ROW = " AND c.task_index = %s"
_START = (0, 0, 0)


def _changes_in(scope: Scope) -> str:
    """Return the query of the changes of a scope."""
    in_scope = _IN_TAG * (scope.tag is not None) + _IN_ROW * (scope.task_index is not None)
    return f"""
{_HEAD}, x.* {_FROM}
LEFT JOIN LATERAL (
  SELECT {STATE} FROM {{cell}} c
  WHERE c.job = j.id AND c.task_index >= 0 AND c."timestamp" > %s
    AND NOT (c."timestamp" <= %s AND pg_visible_in_snapshot(c.xid, %s::pg_snapshot))
    AND (c."timestamp", c.tag, c.task_index) > (%s, %s, %s){in_scope}
  ORDER BY c.job, c."timestamp", c.tag, c.task_index LIMIT {MAX_STATES}
) x ON true
{_WHERE}
ORDER BY x."timestamp", x.tag, x.task_index
"""


class PostgresWatch(Watch):
    """A watch that holds no connection and no transaction between two reads. It works on both sides of a fork."""

    def __init__(
        self, pool: Pool, listener: Listener, jobs: JobCache, ref: JobRef, scope: Scope, since: str | None
    ) -> None:
        position = None if since is None else Position.decode(since)
        self._pool = pool
        self._listener = listener
        self._jobs = jobs
        self._ref = ref
        self._scope = scope
        self._closed = self._missed = False
        self._number = pool.call(lambda db: jobs.read(db, ref).id)
        self._connect()
        self._job: JobRecord | None = None
        self._tags: dict[int, str] = {}
        self._revision, self._end = pool.call(self._read_end)
        self._after = _START
        self._first: tuple[Snapshot, int] | None = None
        self._position = self._end
        if position is not None:
            self._missed = position.server != self._end.server or position.time > self._end.time
            self._revision = -1
            self._due = True
            if not self._missed:
                self._position = position

    @property
    def cursor(self) -> str:
        return str(self._position if self._first is None else self._position.until(self._after[0] - 1))

    def read(self, timeout: float) -> Batch:
        deadline = time.monotonic() + timeout
        if os.getpid() != self._pid and not self._closed:
            self._connect()
        while not self._closed:
            signal = self._signal
            if signal is not None and signal.lost:
                raise StoreUnavailable(f"{self._pool.address.shown} closed the connection for notifications")
            left = deadline - time.monotonic()
            if self._due or self._event.is_set() or time.monotonic() >= self._read_at:
                self._event.clear()
                batch = self._read()
                if batch is not None:
                    return batch
            if left <= 0:
                break
            self._event.wait(max(0.0, min(left, self._read_at - time.monotonic())))
        return Batch([])

    def close(self) -> None:
        self._closed = True
        if os.getpid() == self._pid:
            if self._signal is not None:
                self._listener.forget(self._number, self._signal)
            self._event.set()

    def _connect(self) -> None:
        """Register this watch for notifications in this process. Raises: StoreError."""
        self._pid = os.getpid()
        self._signal: Signal | None = self._listener.watch(self._number)
        if self._signal is not None:
            weakref.finalize(self, self._listener.forget, self._number, self._signal)
        self._event = threading.Event() if self._signal is None else self._signal.event
        self._longest = POLL_PAUSE if self._signal is None else LISTEN_PAUSE
        self._pause = FIRST_PAUSE
        self._read_at, self._due = 0.0, False

    def _read(self) -> Batch | None:
        """Read once; return None if nothing of the scope has changed."""
        batch = self._pool.call(self._changes)
        found = bool(batch.states or batch.job_changed or batch.resync)
        self._due = self._first is not None
        self._pause = FIRST_PAUSE if found else min(self._pause * 2, self._longest)
        self._read_at = time.monotonic() + self._pause
        return batch if found else None

    def _read_end(self, db: Connection) -> tuple[int, Position]:
        """Return the revision of the job, and the position after its newest change. Raises: JobNotFound."""
        row = db.execute(self._pool.names.fill(_END), (self._number, self._ref.incarnation)).fetchone()
        if row is None:
            raise JobNotFound(*self._ref.key)
        seen, revision, newest = row
        return revision, Position.at_end(Snapshot.parse(seen), newest, db.server, LOOKBACK)

    def _changes(self, db: Connection) -> Batch:
        position, scope = self._position, self._scope
        values = (position.complete, position.time, str(position.seen), *self._after)
        in_scope = [each for each in (scope.tag, scope.task_index) if each is not None]
        text = self._pool.names.fill(_changes_in(scope))
        rows = db.execute(text, (*values, *in_scope, self._number, self._ref.incarnation), binary=True).fetchall()
        if not rows:
            raise JobNotFound(*self._ref.key)
        snapshot, revision, newest = rows[0][:3]
        seen = Snapshot.parse(snapshot)
        if self._missed or position.server != db.server or newest < position.time:  # restored from a copy
            self._missed, self._first, self._after = False, None, _START
            self._position, self._revision = Position.at_end(seen, newest, db.server, LOOKBACK), revision
            return Batch([], job_changed=True, resync=True)
        job_changed, self._revision = revision != self._revision, revision
        if job_changed or self._job is None:
            self._job = self._jobs.read(db, self._ref).job
        found: list[StateRow] = [row[3:] for row in rows if row[3] is not None]
        if any(row[1] not in self._tags for row in found):
            self._tags = self._jobs.tags(db, self._jobs.get_cached(db, self._ref))
        return self._batch(self._job, found, seen, newest, job_changed=job_changed)

    def _batch(self, job: JobRecord, rows: list[StateRow], seen: Snapshot, newest: int, *, job_changed: bool) -> Batch:
        """Create a batch and move the position. What a later page contains may be repeated by the next read."""
        first_seen, first_newest = self._first or (seen, newest)
        after_all = self._position.advanced(first_seen, first_newest)
        complete = len(rows) < MAX_STATES
        if complete:
            self._position, self._first, self._after = after_all, None, _START
        else:
            self._first, self._after = (first_seen, first_newest), rows[-1][:3]
        cursors = [str(after_all.until(_time_after(rows, at))) for at in range(len(rows))]
        if cursors:
            cursors[-1] = self.cursor
        return Batch([state_of(job, self._tags[row[1]], row) for row in rows], job_changed, False, cursors)


def _time_after(rows: list[Any], at: int) -> int:
    """Return the time up to which all changes are in the first rows, which may be earlier than that of the last."""
    time = int(rows[at][0])
    return time - 1 if at + 1 < len(rows) and rows[at + 1][0] == time else time
