"""The jobs, columns and watches of the memory store. All of it runs under the store's lock."""

from __future__ import annotations

import heapq
import threading
import weakref
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import replace
from itertools import chain
from typing import Any

from celery_statemanager import aggregate
from celery_statemanager.codec import state_of
from celery_statemanager.errors import JobNotFound
from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import Scope, State, Status
from celery_statemanager.records import Batch, Cell, Column, JobRecord, OpenAttempt, StoredCell, Tally
from celery_statemanager.stores.base import Watch
from celery_statemanager.stores.steps import mark_of
from celery_statemanager.transitions import tally_of


class Job:
    """One job; the ``steps.Transaction`` of its store while the store's lock is held.

    A step only writes after everything that may raise, so that nothing needs to be rolled back.
    """

    def __init__(self, record: JobRecord, now: int) -> None:
        self.record = record
        self.now = now
        self.last_activity = now
        self.deleted = False
        self.followed = False
        self.columns: dict[str, _Column] = {}
        self.callbacks: dict[str, Cell] = {}
        self.owned: dict[tuple[str, int], OpenAttempt] = {}
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
        self._note_owner(tag, task_index, old, new)
        if task_index < 0:
            self.callbacks[tag] = new
            return
        self._column(tag).put(task_index, old, new)
        if self.followed:  # seldom, and a weak set is slow even to say that it is empty
            for watch in self.watches:
                watch.offer(tag, task_index, new)

    def follow(self, watch: MemoryWatch) -> None:
        self.watches.add(watch)
        self.followed = True

    def rewrite(self, tag: str, task_index: int, old: Cell, new: Cell) -> None:
        self._note_owner(tag, task_index, old, new)
        if task_index < 0:
            self.callbacks[tag] = new
        else:
            self._column(tag).put(task_index, old, new)

    def cells(self) -> Iterator[StoredCell]:
        """Give all cells, runs of callbacks too."""
        runs = ((tag, -1, cell) for tag, cell in self.callbacks.items())
        grid = ((tag, row, cell) for tag, column in self.columns.items() for row, cell in column.cells.items())
        return (StoredCell(*place, mark_of(place[2])) for place in chain(runs, grid))

    def adopted(self, incarnation: str) -> Job:
        """Give the job under another incarnation; this one is gone then."""
        job = copy(self)
        job.record = replace(self.record, incarnation=incarnation, schema_version=0, revision=self.record.revision + 1)
        job.watches = weakref.WeakSet()
        job.owned = {place: replace(attempt, ref=job.record.ref) for place, attempt in self.owned.items()}
        for column in job.columns.values():
            column.job = job
        self.delete()
        return job

    def total(self) -> Tally:
        columns = (self.columns.get(tag) for tag in self.expected_tags())
        total = Tally()
        for column in columns:
            total = total.plus(column.tally) if column else total
        return total

    def put_job(self, job: JobRecord) -> None:
        self.record = replace(job, revision=self.record.revision + 1)
        for watch in self.watches:
            watch.job_changed()

    def delete(self) -> None:
        self.deleted = True
        for watch in self.watches:
            watch.job_changed()

    def expected_tags(self) -> list[str]:
        return aggregate.expected_tags(self.record, self.columns)

    def lowest(self, scope: Scope) -> State:
        if scope.task_index is None:
            tags = self.expected_tags() if scope.tag is None else [scope.tag]
            found = [self._column(tag, keep=False).lowest() for tag in tags]
        else:
            row = scope.task_index
            tags = [tag for tag in self.expected_tags() if aggregate.expects(self.record, tag, row)]
            found = [self.state(tag, row) for tag in (tags if scope.tag is None else [scope.tag])]
        return aggregate.lowest(state for state in found if state) or aggregate.missing_state(
            self.record, scope.tag or "", scope.task_index or 0
        )

    def column_summaries(self, tag: str, *, indexes: bool) -> Column:
        column = self._column(tag, keep=False)
        made = Column(tag, len(column.rows), column.tally, column.lowest())
        if indexes:
            made.failed, made.running, made.missing, made.not_run = column.index_sets()
        return made

    def written(self, scope: Scope) -> Iterator[tuple[str, int, Cell]]:
        for tag, column in self.columns.items():
            if scope.tag in (None, tag):
                rows = column.cells if scope.task_index is None else {scope.task_index} & column.cells.keys()
                yield from ((tag, row, column.cells[row]) for row in rows)

    def state(self, tag: str, task_index: int) -> State:
        return aggregate.visible_state(self.record, tag, task_index, self.cell(tag, task_index))

    def _column(self, tag: str, *, keep: bool = True) -> _Column:
        column = self.columns.get(tag)
        if column is None:
            column = _Column(self, tag)
            if keep:
                self.columns[tag] = column
        return column

    def _note_owner(self, tag: str, task_index: int, old: Cell | None, new: Cell) -> None:
        if new.open and new.owner is not None:
            self.owned[tag, task_index] = OpenAttempt(self.record.ref, tag, task_index, new)
        elif old is not None and old.owner is not None:
            self.owned.pop((tag, task_index), None)


class _Column:
    """The cells under one tag, with their tally and what finds the lowest without a walk."""

    def __init__(self, job: Job, tag: str) -> None:
        self.job = job
        self.tag = tag
        self.rows = aggregate.expected_rows(job.record, tag)
        self.cells: dict[int, Cell] = {}
        self.tally = Tally()
        self._by_status = _LazyHeap(lambda status, row: self.cells[row].status == status)
        self._waiting = _LazyHeap(lambda _, row: self.cells[row].waiting)
        self._unwritten = iter(self.rows)
        self._first_unwritten = next(self._unwritten, None)

    def put(self, row: int, old: Cell | None, new: Cell) -> None:
        self.cells[row] = new
        if row not in self.rows:
            return
        before, after = tally_of(old), tally_of(new)
        if before != after:
            self.tally = self.tally.moved(before, after)
        if old is None or old.status != new.status:
            self._by_status.push(new.status, row, len(self.cells))
        if new.status == 0 and new.waiting and not (old and old.waiting):
            self._waiting.push(0, row, len(self.cells))

    def lowest(self) -> State | None:
        rows = {self._by_status.first(), self._unwritten_row()}
        if self.job.record.cancelled:
            rows.add(self._waiting.first())
        return aggregate.lowest(self.job.state(self.tag, row) for row in rows if row is not None)

    def index_sets(self) -> tuple[IndexSet, IndexSet, IndexSet, IndexSet]:
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
        return IndexSet(failed), IndexSet(running), self.rows.without(IndexSet(started)), IndexSet(not_run)

    def _unwritten_row(self) -> int | None:
        while self._first_unwritten is not None and self._first_unwritten in self.cells:
            self._first_unwritten = next(self._unwritten, None)
        return self._first_unwritten


class _LazyHeap:
    """Pairs (rank, row), lowest first; outdated ones are dropped when they are met, or when they are too many."""

    def __init__(self, holds: Callable[[int, int], bool]) -> None:
        self._holds = holds
        self._pairs: list[tuple[int, int]] = []

    def push(self, rank: int, row: int, live: int) -> None:
        heapq.heappush(self._pairs, (rank, row))
        if len(self._pairs) > 2 * live + 64:
            self._pairs = sorted({pair for pair in self._pairs if self._holds(*pair)})

    def first(self) -> int | None:
        while self._pairs and not self._holds(*self._pairs[0]):
            heapq.heappop(self._pairs)
        return self._pairs[0][1] if self._pairs else None


class MemoryWatch(Watch):
    """Holds the newest version of each cell that changed since the last read."""

    def __init__(self, lock: Any, job: Job, scope: Scope) -> None:
        self._lock = lock
        self._changed = threading.Condition(lock)  # never entered: a signal may strike its exit, which is Python
        self._job = job
        self._scope = scope
        self._cells: dict[tuple[str, int], Cell] = {}
        self._job_changed = False
        self._closed = False

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
        job_id = self._job.record.job_id
        return Batch([state_of(job_id, tag, row, cell) for (tag, row), cell in cells.items()], job_changed)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._job.watches.discard(self)
            self._changed.notify_all()
