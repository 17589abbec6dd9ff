"""One job inside a step: the ``Transaction`` on which ``stores.steps`` runs. It collects changes for one round trip."""

# ruff: noqa: S608 - only names of our own columns and tables are interpolated; every value is bound

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from operator import sub
from typing import Any, NamedTuple

from celery_statemanager import aggregate
from celery_statemanager.records import Cell, JobRecord, OutboxState, Tally
from celery_statemanager.stores.kinds import COUNTED, Kind, kind_of
from celery_statemanager.stores.postgres.cells import COLUMNS, TALLY, packed, row_of
from celery_statemanager.stores.postgres.jobs import CachedJob
from celery_statemanager.stores.postgres.names import SHARDS
from celery_statemanager.stores.postgres.put import DROP, KEEP, NOW, STORE
from celery_statemanager.stores.transactional import CellKey
from celery_statemanager.transitions import tally_of

_REWRITTEN = [name for name in COLUMNS if name not in {"status", "timestamp", "version", "attempt", "open", "owner"}]
_REWRITE = (
    f"UPDATE {{cell}} SET {', '.join(f'{name} = %s' for name in _REWRITTEN)} "
    "WHERE job = %s AND tag = %s AND task_index = %s"
)
_COUNT = (
    f"UPDATE {{tally}} SET {', '.join(f'{name} = {name} + %s' for name in TALLY)} "
    "WHERE job = %s AND tag = %s AND shard = %s"
)
_NOTHING = Tally()


class StaleCache(Exception):
    """The step needs values that were not read for it."""


class Put(NamedTuple):
    """A change of one cell."""

    tag: str
    task_index: int
    old: Cell | None
    new: Cell


class PostgresTransaction:
    """The ``steps.Transaction`` of one job.

    With ``read_cell``, all values were read under the exclusive lock of the job. Without it, the job and one cell come
    from the cache: the step may change this cell only, and the server checks what the step has assumed.

    Args:
        now: the time, not earlier than any known change; ``NOW`` if the server determines it.
        cells: the cells that were read.
        total: the sum of the tallies of the expected columns.
    """

    def __init__(
        self,
        cached: CachedJob,
        now: int,
        cells: dict[CellKey, Cell | None],
        *,
        total: Tally = _NOTHING,
        read_cell: Callable[[str, int], Cell | None] | None = None,
        read_outbox: Callable[[], OutboxState] | None = None,
    ) -> None:
        self.now = now
        self.cached = cached
        self.job: JobRecord = cached.job
        self.puts: list[Put] = []
        self.rewrites: list[Put] = []
        self.values: dict[int, str | None] = {}
        self.old_outbox: OutboxState | None = None
        self.new_outbox: OutboxState | None = None
        self.checks_later = self.checks_deadline = False
        self._cells = cells
        self._total = total
        self._read_cell = read_cell
        self._read_outbox = read_outbox

    @property
    def changed(self) -> bool:
        """Whether there is anything to store."""
        outbox = self.new_outbox is not None
        return bool(self.puts or self.rewrites or self.values) or outbox or self.job is not self.cached.job

    @property
    def deadline_time(self) -> int:
        """The time to compare with the deadline of the job. If it is not known, the server compares."""
        self.checks_deadline = True
        return self.now if self._read_cell else 0

    def cell(self, tag: str, task_index: int) -> Cell | None:
        key = (tag, task_index)
        if key not in self._cells:
            if self._read_cell is None:  # a later stage of the row, of interest if it is blocked
                self.checks_later = True
                return None
            self._cells[key] = self._read_cell(tag, task_index)
        return self._cells[key]

    def put(self, tag: str, task_index: int, old: Cell | None, new: Cell) -> None:
        if self._read_cell is None and self.job.plan is not None and new.final and new.status < 0:
            raise StaleCache  # blocks later stages, and may decide a latch
        put = Put(tag, task_index, old, new)
        self.puts.append(put)
        self._cells[tag, task_index] = new
        if kind_of(self.job, tag, task_index) is Kind.EXPECTED:
            self._total = self._total.moved(*tallies(self.job, put))

    def rewrite(self, tag: str, task_index: int, old: Cell, new: Cell) -> None:
        self.rewrites.append(Put(tag, task_index, old, new))
        self._cells[tag, task_index] = new

    def total(self) -> Tally:
        return self._total if self._read_cell else _NOTHING  # then the server counts how many have ended

    def outbox(self) -> OutboxState:
        if self.new_outbox is not None:
            return self.new_outbox
        if self.old_outbox is None:
            if self._read_outbox is None:
                raise StaleCache
            self.old_outbox = self._read_outbox()
        return self.old_outbox

    def put_outbox(self, state: OutboxState) -> None:
        self.outbox()
        self.new_outbox = state

    def put_value(self, task_index: int, value: str | None) -> None:
        self.values[task_index] = value

    def put_job(self, job: JobRecord) -> None:
        if self._read_cell is None:
            raise StaleCache
        self.job = replace(job, revision=self.cached.job.revision + 1)

    def expected_to_end(self) -> int:
        """Return the number of expected cells if the server must check how many have ended; otherwise 0."""
        job = self.job
        if self._read_cell is not None or job.plan is None:
            return 0
        ends = any(put.new.final and job.plan.expects(put.tag, put.task_index) for put in self.puts)
        return job.plan.expected if ends else 0

    def put_arguments(self, put: Put, lock: int, lock_timeout: str) -> tuple[Any, ...]:
        """Return the arguments of the server's function for one change of a cell."""
        job, (tag, row, old, new) = self.cached.job, put
        kind = kind_of(job, tag, row)
        counted = kind in COUNTED
        before, after = tallies(job, put) if counted else (_NOTHING, _NOTHING)
        tally = _difference(before, after) if counted and (old is None or before != after) else None
        action, value_row, value = KEEP, 0, None
        if self.values and put is self.puts[0]:
            ((value_row, text),) = self.values.items()
            action, value = (DROP, None) if text is None else (STORE, text.encode())
        status, timestamp, *rest = row_of(new)
        return (
            lock,
            lock_timeout,
            self.cached.id,
            job.incarnation,
            job.revision,
            (job.policy.deadline or 0) if self.checks_deadline and row >= 0 else 0,
            self.expected_to_end(),
            self.checks_later,
            self.floor(old) if timestamp == NOW else timestamp,
            self.cached.columns[kind, tag],
            row,
            counted,
            tally,
            0 if old is None else old.version,
            b"" if old is None else packed(old.event_id),
            0 if old is None else old.schema_version,
            action,
            value_row,
            value,
            status,
            *rest,
        )

    def floor(self, old: Cell | None) -> int:
        """Return the latest known time of the job."""
        return max(self.cached.latest_time, old.timestamp if old is not None else 0)

    def rewrite_statements(self, put: Put) -> list[tuple[str, tuple[Any, ...]]]:
        """Return the statements that store a migrated cell."""
        job, (tag, row, _, new) = self.cached.job, put
        kind = kind_of(job, tag, row)
        values = dict(zip(COLUMNS, row_of(new)))
        for name, default in (("generation", 1), *((name, 0) for name in _ZERO)):
            values[name] = None if values[name] == default else values[name]
        key = (self.cached.id, self.cached.columns[kind, tag])
        found = [(_REWRITE, (*[values[name] for name in _REWRITTEN], *key, row))]
        before, after = tallies(job, put) if kind in COUNTED else (_NOTHING, _NOTHING)
        if before != after:
            found.append((_COUNT, (*map(sub, after, before), *key, row % SHARDS)))
        return found


_ZERO = ("publication", "replacements", "retries", "losses", "failures", "stall_after", "stalled_since")


def tallies(job: JobRecord, put: Put) -> tuple[Tally, Tally]:
    """Return what a cell counted for before a change, and what it counts for after it."""
    is_last = aggregate.ends_row(job, put.tag, put.task_index)
    return tally_of(put.old, is_last=is_last), tally_of(put.new, is_last=is_last)


@lru_cache(1_000)
def _difference(old: Tally, new: Tally) -> str:
    return f"{{{','.join(map(str, map(sub, new, old)))}}}"
