"""A display's model of a job's cells; the cost of a change does not grow with the job. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple

from celery_statemanager import aggregate, records
from celery_statemanager.failures import FailedRows, FailureGroup, FailureReport, Failures, cause_of
from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import Scope, State, Status, Summary
from celery_statemanager.records import FRACTION_UNIT, JobRecord
from celery_statemanager.stores.transactional import CellKey


class Row(NamedTuple):
    """A running cell, without its payload. ``timestamp`` is the time of its last move."""

    tag: str
    task_index: int
    status: int
    fraction: float | None
    message: str
    timestamp: datetime | None
    attempt: int
    stalled: bool = False


class Counts(NamedTuple):
    """Cells by class; ``work`` is the sum of the fractions of the running ones."""

    expected: int = 0
    finished: int = 0
    running: int = 0
    failed: int = 0
    not_run: int = 0
    waiting: int = 0
    work: float = 0.0

    @classmethod
    def from_summary(cls, summary: Summary) -> Counts:
        """Return the counts of a summary."""
        work = summary.fraction * summary.expected - summary.finished
        classes = (summary.finished, summary.running, summary.failed, summary.not_run, summary.not_started)
        return cls(summary.expected, *classes, max(0.0, work))

    @property
    def fraction(self) -> float:
        """How much is done, 0.0 … 1.0; failed cells do not count, as in a job's summary."""
        return min(1.0, (self.finished + self.work) / self.expected) if self.expected else 0.0

    @property
    def ended(self) -> int:
        """Cells that have ended, successfully or not."""
        return self.finished + self.failed + self.not_run

    @property
    def passed(self) -> float:
        """The ended cells and the work done in the running ones, in cells."""
        return self.ended + self.work

    def plus(self, other: Counts) -> Counts:
        """Add class by class."""
        expected, finished, running, failed, not_run, waiting = (a + b for a, b in zip(self[:6], other[:6]))
        return Counts(expected, finished, running, failed, not_run, waiting, self.work + other.work)


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
    not_run: set[int] = field(default_factory=set)
    work: int = 0


class JobModel:
    """The part of each cell that a display of the job needs.

    Attributes:
        job: the job's record as last read; the reader replaces it.
        running: by (tag, row), in the order in which they began to run; a change keeps the position.
        stalled: those of the running cells that have stalled.
        failures: failed cells grouped by cause.
        changes: the number of changes so far.
        last_write: the newest timestamp seen.
        loading: whether the existing states are still being read.
    """

    def __init__(self, job: JobRecord, scope: Scope) -> None:
        self.job = job
        self.scope = scope
        self.columns: dict[str, Column] = {}
        self.running: dict[CellKey, Row] = {}
        self.stalled: set[CellKey] = set()
        self.failures = Failures()
        self.changes = 0
        self.last_write: datetime | None = None
        self.loading = True
        self._summaries: dict[str, Counts] = {}
        self._report: tuple[int, FailureReport] | None = None
        planned = job.plan.tags if job.plan else ()
        for tag in planned if scope.tag is None else (scope.tag,):
            self._column(tag)

    def apply(self, state: State) -> None:
        """Record the newest state of a cell; a cell that the plan does not expect is ignored."""
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
        elif state.status > 0:
            self._run(key, column, state)
        failed = self.failures.record(state)
        if failed is not None:
            (column.failed if failed else column.not_run).add(state.task_index)

    def column_summaries(self, columns: Iterable[records.Column]) -> None:
        """Set the counts to those of the store; they are shown until all cells have been read."""
        if self.scope.task_index is not None:
            return
        self._summaries = {each.tag: _counted(each) for each in columns}

    def counts(self, column: Column) -> Counts:
        """Return the counts of a tag; in a cancelled job, cells that never began count as failed."""
        counts = Counts(
            len(column.rows),
            len(column.finished),
            len(column.running),
            len(column.failed),
            len(column.not_run),
            0,
            column.work / FRACTION_UNIT,
        )
        if self.loading:
            counts = self._summaries.get(column.tag, counts)
        waiting = counts.expected - counts.running - counts.ended
        gone = waiting if self.job.cancelled else 0
        return counts._replace(failed=counts.failed + gone, waiting=waiting - gone)

    def total(self) -> Counts:
        """Return the counts of the job, or of the watched part."""
        total = Counts()
        for column in self.columns.values():
            if column.counts:
                total = total.plus(self.counts(column))
        return total

    @property
    def over(self) -> bool:
        """Whether the job has settled or, without a plan, every cell seen so far has ended."""
        total = self.total()
        return self.job.settled or total.ended == total.expected > 0

    def never_begun(self) -> Iterator[tuple[str, IndexSet]]:
        """Yield the cells that a cancelled job will not begin: tag and rows."""
        if self.job.cancelled is None:
            return
        for column in filter(lambda column: column.counts, self.columns.values()):
            begun = column.finished | column.running | column.failed | column.not_run
            rows = column.rows.without(IndexSet(begun))
            if rows:
                yield column.tag, rows

    def failure_report(self, *, never_begun: bool = False) -> FailureReport:
        """Return the failures by cause, the most frequent first.

        Args:
            never_begun: include the cells that a cancelled job will not begin; takes time for each row.
        """
        if self._report is None or self._report[0] != self.changes:
            self._report = (self.changes, self.failures.report())
        report = self._report[1]
        for tag, rows in self.never_begun() if never_begun else ():
            report = replace(report, groups=self._with_cancelled(report.groups, tag, rows))
        return report

    def _with_cancelled(self, groups: list[FailureGroup], tag: str, rows: IndexSet) -> list[FailureGroup]:
        reason = self.job.cancelled.reason if self.job.cancelled else None
        cause, message, _ = cause_of(State(self.job.job_id, 0, tag, int(Status.CANCELLED), reason))
        same = [each for each in groups if each.cause == cause]
        every = rows.union(*(each.rows.first for each in same))
        count = len(rows) + sum(len(each.rows) for each in same)
        group = FailureGroup(cause, message, any(each.varies for each in same), FailedRows(count, every), {})
        return sorted([*(each for each in groups if each not in same), group], key=lambda each: -len(each.rows))

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
        self.stalled.discard(key)
        column.failed.discard(row)
        column.not_run.discard(row)

    def _run(self, key: CellKey, column: Column, state: State) -> None:
        before, moved = self.running.get(key), state.timestamp
        if state.stalled:
            self.stalled.add(key)
            moved = before.timestamp if before is not None else moved
        row = Row(*key, state.status, state.fraction, state.message or "", moved, state.attempt, state.stalled)
        column.running.add(key[1])
        column.work += _units(row)
        self.running[key] = row


def _units(row: Row) -> int:
    return round((row.fraction or 0.0) * FRACTION_UNIT)


def _counted(column: records.Column) -> Counts:
    tally = column.tally
    work = tally.progress / FRACTION_UNIT
    return Counts(column.expected, tally.finished, tally.running, tally.failed, tally.not_run, 0, work)
