"""The jobs, columns and watches of the memory store. Callers hold the store's lock."""

from __future__ import annotations

import heapq
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import replace
from functools import reduce
from itertools import chain, takewhile
from typing import Any

from celery_statemanager import aggregate
from celery_statemanager.codec import state_of
from celery_statemanager.errors import JobNotFound
from celery_statemanager.indexset import IndexSet
from celery_statemanager.limits import parse_position
from celery_statemanager.models import Scope, State, Status
from celery_statemanager.records import Batch, Cell, Column, JobRecord, OpenAttempt, OutboxState, StoredCell, Tally
from celery_statemanager.stores.base import Watch
from celery_statemanager.stores.steps import mark_of
from celery_statemanager.transitions import tally_of


class MemoryJob:
    """One job, and its ``steps.Transaction``. A step raises before its first write, so no rollback is needed."""

    def __init__(self, record: JobRecord, now: int) -> None:
        self.record = record
        self.now = now
        self.last_activity = now
        self.deleted = False
        self.watched = False
        self.columns: dict[str, _MemoryColumn] = {}
        self.callbacks: dict[str, Cell] = {}
        self.owned: dict[tuple[str, int], OpenAttempt] = {}
        self.claims = OutboxState()
        self.values: dict[int, str] = {}
        self.changes: dict[tuple[str, int], int] = {}
        """The number of the last change of each cell, in the order of these changes."""
        self.last_change = 0
        self.watches: weakref.WeakSet[MemoryWatch] = weakref.WeakSet()

    @property
    def job(self) -> JobRecord:
        return self.record

    def snapshot(self) -> JobRecord:
        return replace(self.record, latches=dict(self.record.latches), last_activity=self.last_activity)

    def cell(self, tag: str, task_index: int) -> Cell | None:
        if task_index < 0:
            return self.callbacks.get(tag)
        column = self.columns.get(tag)
        return None if column is None else column.cells.get(task_index)

    def put(self, tag: str, task_index: int, old: Cell | None, new: Cell) -> None:
        self.last_activity = self.now
        self.rewrite(tag, task_index, old, new)
        if task_index >= 0:
            self.last_change += 1
            self.changes.pop((tag, task_index), None)
            self.changes[tag, task_index] = self.last_change
        if self.watched and task_index >= 0:  # most jobs are not, and iterating over an empty weak set is slow
            for watch in self.watches:
                watch.offer(tag, task_index, new)

    def add_watch(self, watch: MemoryWatch) -> None:
        self.watches.add(watch)
        self.watched = True

    def rewrite(self, tag: str, task_index: int, old: Cell | None, new: Cell) -> None:
        if new.held:
            self.owned[tag, task_index] = OpenAttempt(self.record.ref, tag, task_index, new)
        elif old is not None and old.owner is not None:
            self.owned.pop((tag, task_index), None)
        if task_index < 0:
            self.callbacks[tag] = new
        else:
            self._column(tag).put(task_index, old, new)

    def cells(self) -> Iterator[StoredCell]:
        """Yield all cells, including the runs of callbacks."""
        runs = ((tag, -1, cell) for tag, cell in self.callbacks.items())
        grid = ((tag, row, cell) for tag, column in self.columns.items() for row, cell in column.cells.items())
        return (StoredCell(*each, mark_of(each[2])) for each in chain(runs, grid))

    def adopted(self, incarnation: str) -> MemoryJob:
        """Return the job under another incarnation, and delete this one."""
        job = copy(self)
        job.record = replace(self.record, incarnation=incarnation, schema_version=0, revision=self.record.revision + 1)
        job.watches = weakref.WeakSet()
        job.owned = {key: replace(attempt, ref=job.record.ref) for key, attempt in self.owned.items()}
        for column in job.columns.values():
            column.job = job
        self.delete()
        return job

    def total(self) -> Tally:
        tallies = (self.columns[tag].tally for tag in self.expected_tags() if tag in self.columns)
        return reduce(Tally.plus, tallies, Tally())

    def put_job(self, job: JobRecord) -> None:
        self.record = replace(job, revision=self.record.revision + 1)
        for watch in self.watches:
            watch.job_changed()

    def outbox(self) -> OutboxState:
        return replace(self.claims, claims=dict(self.claims.claims))

    def put_outbox(self, state: OutboxState) -> None:
        self.claims = state

    def put_value(self, task_index: int, value: str | None) -> None:
        if value is None:
            self.values.pop(task_index, None)
        else:
            self.values[task_index] = value

    def delete(self) -> None:
        self.deleted = True
        for watch in self.watches:
            watch.job_changed()

    def expected_tags(self) -> list[str]:
        return aggregate.expected_tags(self.record, self.columns)

    def lowest(self, scope: Scope) -> State:
        if scope.task_index is None:
            tags = self.expected_tags() if scope.tag is None else [scope.tag]
            states = [self._column(tag, keep=False).lowest() for tag in tags]
        else:
            row = scope.task_index
            tags = [tag for tag in self.expected_tags() if aggregate.expects(self.record, tag, row)]
            states = [self.state(tag, row) for tag in (tags if scope.tag is None else [scope.tag])]
        return aggregate.lowest(state for state in states if state) or aggregate.missing_state(
            self.record, scope.tag or "", scope.task_index or 0
        )

    def column_summaries(self, tag: str, *, indexes: bool) -> Column:
        column = self._column(tag, keep=False)
        summary = Column(tag, len(column.rows), column.tally, column.lowest())
        if indexes:
            summary.failed, summary.running, summary.missing, summary.not_run, summary.stalled = column.index_sets()
        return summary

    def written(self, scope: Scope) -> Iterator[tuple[str, int, Cell]]:
        for tag, column in self.columns.items():
            if scope.tag in (None, tag):
                rows = column.cells if scope.task_index is None else {scope.task_index} & column.cells.keys()
                yield from ((tag, row, column.cells[row]) for row in rows)

    def state(self, tag: str, task_index: int) -> State:
        return aggregate.visible_state(self.record, tag, task_index, self.cell(tag, task_index))

    def _column(self, tag: str, *, keep: bool = True) -> _MemoryColumn:
        column = self.columns.get(tag)
        if column is None:
            column = _MemoryColumn(self, tag)
            if keep:
                self.columns[tag] = column
        return column


class _MemoryColumn:
    """The cells under one tag, with their tally and heaps that find the lowest cell without reading all."""

    def __init__(self, job: MemoryJob, tag: str) -> None:
        self.job = job
        self.tag = tag
        self.rows = aggregate.expected_rows(job.record, tag)
        self.cells: dict[int, Cell] = {}
        self.tally = Tally()
        self._by_status = _LazyHeap(lambda status, row: self.cells[row].status == status)
        self._waiting = _LazyHeap(lambda _, row: self.cells[row].waiting)
        self._later_rows = iter(self.rows)
        self._first_unwritten = next(self._later_rows, None)

    def put(self, row: int, old: Cell | None, new: Cell) -> None:
        self.cells[row] = new
        if row not in self.rows:
            return
        is_last = aggregate.ends_row(self.job.record, self.tag, row)
        before, after = tally_of(old, is_last=is_last), tally_of(new, is_last=is_last)
        if before != after:
            self.tally = self.tally.moved(before, after)
        if old is None or old.status != new.status:
            self._by_status.push(new.status, row, len(self.cells))
        if new.status == 0 and new.waiting and not (old and old.waiting):
            self._waiting.push(0, row, len(self.cells))

    def lowest(self) -> State | None:
        while self._first_unwritten is not None and self._first_unwritten in self.cells:
            self._first_unwritten = next(self._later_rows, None)
        rows = {self._by_status.first(), self._first_unwritten}
        if self.job.record.cancelled:
            rows.add(self._waiting.first())
        return aggregate.lowest(self.job.state(self.tag, row) for row in rows if row is not None)

    def index_sets(self) -> tuple[IndexSet, IndexSet, IndexSet, IndexSet, IndexSet]:
        failed: list[int] = []
        running: list[int] = []
        not_run: list[int] = []
        started: list[int] = []
        for row, cell in self.cells.items():
            if row in self.rows and cell.status != 0:
                started.append(row)
                if cell.status < 0:
                    (failed if cell.blocked_by is None else not_run).append(row)
                elif cell.status != Status.FINISHED:
                    running.append(row)
        stalled = [row for row, cell in self.cells.items() if cell.stall.since and row in self.rows]
        missing = self.rows.without(IndexSet(started))
        return IndexSet(failed), IndexSet(running), missing, IndexSet(not_run), IndexSet(stalled)


class _LazyHeap:
    """A heap of pairs (rank, row). Outdated pairs are removed when they come first, or when there are too many."""

    def __init__(self, is_current: Callable[[int, int], bool]) -> None:
        self._is_current = is_current
        self._pairs: list[tuple[int, int]] = []

    def push(self, rank: int, row: int, written: int) -> None:
        heapq.heappush(self._pairs, (rank, row))
        if len(self._pairs) > 2 * written + 64:
            self._pairs = sorted({pair for pair in self._pairs if self._is_current(*pair)})

    def first(self) -> int | None:
        while self._pairs and not self._is_current(*self._pairs[0]):
            heapq.heappop(self._pairs)
        return self._pairs[0][1] if self._pairs else None


class MemoryWatch(Watch):
    """A watch that holds the newest version of each cell that has changed since the last read."""

    def __init__(self, lock: Any, job: MemoryJob, scope: Scope, since: str | None) -> None:
        self._lock = lock
        self._changed = threading.Condition(lock)  # never entered: a signal could interrupt its exit, which is Python
        self._job = job
        self._scope = scope
        self._cells: dict[tuple[str, int], Cell] = {}
        self._job_changed = self._resync = self._closed = False
        self._position = job.last_change
        if since is not None:
            self._go_back(*parse_position(since, 2))

    @property
    def cursor(self) -> str:
        return f"{self._position}-{os.getpid()}"  # a forked child continues with a history of its own

    def _go_back(self, position: int, process: int) -> None:
        self._job_changed = True  # it may have
        if process != os.getpid() or position > self._position:
            self._resync = True
            return
        self._position = position
        changed = takewhile(lambda change: change[1] > position, reversed(self._job.changes.items()))
        for key in reversed([key for key, _ in changed if self._scope.holds(*key)]):
            cell = self._job.cell(*key)
            assert cell is not None
            self._cells[key] = cell

    def offer(self, tag: str, task_index: int, cell: Cell) -> None:
        if self._scope.holds(tag, task_index):
            self._cells.pop((tag, task_index), None)
            self._cells[tag, task_index] = cell
            self._changed.notify_all()

    def job_changed(self) -> None:
        self._job_changed = True
        self._changed.notify_all()

    def read(self, timeout: float) -> Batch:
        with self._lock:
            self._changed.wait_for(lambda: self._cells or self._job_changed or self._closed, timeout)
            if self._job.deleted:
                raise JobNotFound(*self._job.record.key)
            cells, self._cells = self._cells, {}
            job_changed, self._job_changed = self._job_changed, False
            resync, self._resync = self._resync, False
            cursors = [f"{self._job.changes[key]}-{os.getpid()}" for key in cells]
            self._position = self._job.last_change
        job_id = self._job.record.job_id
        states = [state_of(job_id, tag, row, cell) for (tag, row), cell in cells.items()]
        return Batch(states, job_changed, resync, cursors)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._job.watches.discard(self)
            self._changed.notify_all()
