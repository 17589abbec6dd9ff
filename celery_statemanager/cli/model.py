"""The cells of a job as a watcher holds them: what each change costs does not grow with the job. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from celery_statemanager import aggregate, records
from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import Scope, State, Status, Summary
from celery_statemanager.records import FRACTION_UNIT, JobRecord

CellKey = tuple[str, int]


class Row(NamedTuple):
    """A running cell, without its payload."""

    tag: str
    task_index: int
    status: int
    fraction: float | None
    message: str
    timestamp: datetime | None
    attempt: int


class Failure(NamedTuple):
    """What failed cells have in common."""

    tag: str
    status: int
    message: str


class Counts(NamedTuple):
    """Cells by class; ``work`` is the sum of the fractions of the running ones."""

    expected: int = 0
    finished: int = 0
    running: int = 0
    failed: int = 0
    waiting: int = 0
    work: float = 0.0

    @classmethod
    def from_summary(cls, summary: Summary) -> Counts:
        """Give the counts of a summary."""
        work = summary.fraction * summary.expected - summary.finished
        classes = (summary.finished, summary.running, summary.failed + summary.not_run, summary.not_started)
        return cls(summary.expected, *classes, max(0.0, work))

    @property
    def fraction(self) -> float:
        """How much is done, 0.0 … 1.0: failed cells count for nothing, as in a job's summary."""
        return min(1.0, (self.finished + self.work) / self.expected) if self.expected else 0.0

    def plus(self, other: Counts) -> Counts:
        """Add class by class."""
        expected, finished, running, failed, waiting = (a + b for a, b in zip(self[:5], other[:5]))
        return Counts(expected, finished, running, failed, waiting, self.work + other.work)

    @property
    def passed(self) -> float:
        """How much lies behind, in cells, well or not."""
        return self.finished + self.failed + self.work


@dataclass(slots=True)
class Column:
    """One tag of the job.

    Attributes:
        rows: those expected under the tag.
        counts: whether the tag counts for the job as a whole; an unplanned one does not.
        work: sum over running cells of their fraction, in units of ``1 / FRACTION_UNIT``.
    """

    tag: str
    rows: IndexSet
    counts: bool
    finished: set[int] = field(default_factory=set)
    running: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    work: int = 0


class Board:
    """Holds of each cell no more than a picture of the job needs.

    Attributes:
        job: the job's record as last read; the reader exchanges it.
        running: by (tag, row), in the order in which they were seen to run; a change keeps the place.
        failures: rows by what they have in common, in the order first seen.
        changes: rises with every change.
        last_write: the newest timestamp seen.
        loading: whether what existed before is still being read.
    """

    def __init__(self, job: JobRecord, scope: Scope) -> None:
        self.job = job
        self.scope = scope
        self.columns: dict[str, Column] = {}
        self.running: dict[CellKey, Row] = {}
        self.failures: dict[Failure, set[int]] = {}
        self.changes = 0
        self.last_write: datetime | None = None
        self.loading = True
        self._failed: dict[CellKey, Failure] = {}
        self._surveyed: dict[str, Counts] = {}
        planned = job.plan.tags if job.plan else ()
        for tag in planned if scope.tag is None else (scope.tag,):
            self._column(tag)

    def apply(self, state: State) -> None:
        """Take in the newest state of a cell; one that the plan does not expect under its tag is passed over."""
        column = self._column(state.tag)
        if state.task_index not in column.rows:
            return
        self.changes += 1
        if state.timestamp and (self.last_write is None or state.timestamp > self.last_write):
            self.last_write = state.timestamp
        key = (state.tag, state.task_index)
        self._leave(key, column, runs_on=state.status > 0 and not state.terminal)
        if state.finished:
            column.finished.add(state.task_index)
        elif state.failed:
            self._fail(key, column, Failure(state.tag, state.status, state.message or ""))
        elif state.status > 0:
            self._run(key, column, state)

    def column_summaries(self, columns: Iterable[records.Column]) -> None:
        """Take over what the store counted: the truth about a large job until all its cells were read."""
        if self.scope.task_index is not None:
            return
        self._surveyed = {each.tag: _counted(each) for each in columns}

    def counts(self, column: Column) -> Counts:
        """Count the expected cells under a tag; in a cancelled job what never began has failed."""
        counts = Counts(
            len(column.rows),
            len(column.finished),
            len(column.running),
            len(column.failed),
            0,
            column.work / FRACTION_UNIT,
        )
        if self.loading:
            counts = self._surveyed.get(column.tag, counts)
        waiting = counts.expected - counts.finished - counts.running - counts.failed
        gone = waiting if self.job.cancelled else 0
        return counts._replace(failed=counts.failed + gone, waiting=waiting - gone)

    def total(self) -> Counts:
        """Count the expected cells of the job, or of what is watched of it."""
        total = Counts()
        for column in self.columns.values():
            if column.counts:
                total = total.plus(self.counts(column))
        return total

    @property
    def over(self) -> bool:
        """Whether the job has settled or, without a plan, every cell seen so far has ended."""
        total = self.total()
        return self.job.settled or total.finished + total.failed == total.expected > 0

    def never_begun(self) -> Iterator[tuple[Failure, IndexSet]]:
        """Give the cells that a cancelled job will not begin."""
        if self.job.cancelled is None:
            return
        for column in filter(lambda column: column.counts, self.columns.values()):
            rows = column.rows.without(IndexSet(column.finished | column.running | column.failed))
            if rows:
                yield Failure(column.tag, Status.CANCELLED, self.job.cancelled.reason or ""), rows

    def _column(self, tag: str) -> Column:
        if tag not in self.columns:
            rows = aggregate.expected_rows(self.job, tag)
            if self.scope.task_index is not None:
                rows = IndexSet([self.scope.task_index] if self.scope.task_index in rows else [])
            counts = self.job.plan is None or tag in self.job.plan.columns or tag == self.scope.tag
            self.columns[tag] = Column(tag, rows, counts)
        return self.columns[tag]

    def _leave(self, key: CellKey, column: Column, *, runs_on: bool) -> None:
        row = key[1]
        column.finished.discard(row)
        if row in column.running:
            column.running.discard(row)
            column.work -= _units(self.running[key])
            if not runs_on:
                del self.running[key]
        elif row in column.failed:
            column.failed.discard(row)
            failure = self._failed.pop(key)
            self.failures[failure].discard(row)
            if not self.failures[failure]:
                del self.failures[failure]

    def _fail(self, key: CellKey, column: Column, failure: Failure) -> None:
        column.failed.add(key[1])
        self._failed[key] = failure
        self.failures.setdefault(failure, set()).add(key[1])

    def _run(self, key: CellKey, column: Column, state: State) -> None:
        row = Row(*key, state.status, state.fraction, state.message or "", state.timestamp, state.attempt)
        column.running.add(key[1])
        column.work += _units(row)
        self.running[key] = row


def _units(row: Row) -> int:
    return round((row.fraction or 0.0) * FRACTION_UNIT)


def _counted(column: records.Column) -> Counts:
    tally = column.tally
    work = tally.progress / FRACTION_UNIT
    return Counts(column.expected, tally.finished, tally.running, tally.failed + tally.not_run, 0, work)
