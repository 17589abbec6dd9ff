"""Determine which messages run or are with a live worker, from the open attempts and the worker records of a sweep."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

from celery_statemanager import put_back
from celery_statemanager.indexset import IndexSet
from celery_statemanager.leases import RENEWALS, Report, cell_name, each_worker
from celery_statemanager.records import CALLBACK_ROW, Column, JobRecord, JobRef, OpenAttempt, OutboxState
from celery_statemanager.stores.capabilities import WorkerRegistry

CellKey = tuple[str, int]
"""A tag and a row."""


class _Listed(NamedTuple):
    """What the records of live workers list: the names of cells, and the received cells of each incarnation."""

    names: frozenset[str]
    received: dict[str, set[CellKey]]


class AtWork:
    """The messages that run or that a live worker has, as of one sweep.

    Args:
        gone_at: when the last of the dead workers has gone whose records exist; 0 if there are none.
        sends_ahead: whether the broker sends messages to a worker whose main loop does not read them. Such a worker
            lists none.
        lease: in microseconds.
    """

    def __init__(self, store: WorkerRegistry, lease: int, now: int, gone_at: int, *, sends_ahead: bool) -> None:
        self._store = store
        self._lease = lease
        self._now = now
        self._gone_at = gone_at
        self._sends_ahead = sends_ahead
        self._held: defaultdict[str, set[CellKey]] = defaultdict(set)
        self._newest: defaultdict[str, dict[str, int]] = defaultdict(dict)

    def add(self, attempt: OpenAttempt) -> None:
        """Add an attempt that is open, or whose message the broker is to deliver again."""
        cell, rows = attempt.cell, self._newest[attempt.ref.incarnation]
        self._held[attempt.ref.incarnation].add((attempt.tag, attempt.task_index))
        if cell.open and not (cell.delivery.retries or cell.delivery.replacements):
            rows[attempt.tag] = max(attempt.task_index, rows.get(attempt.tag, CALLBACK_ROW))

    def newest(self, ref: JobRef) -> list[CellKey]:
        """Return the last row of each stage of which an attempt is open that is no retry."""
        return [(tag, row) for tag, row in self._newest[ref.incarnation].items() if row != CALLBACK_ROW]

    @cached_property
    def connection_ended_at(self) -> int:
        """When the connection of a worker to its broker has ended last."""
        return max(self._gone_at, put_back.noted_at(self._store))

    @property
    def is_known(self) -> bool:
        """Whether the records of all live workers list all messages that they have."""
        return self._listed is not None

    def has(self, ref: JobRef, tag: str, row: int) -> bool:
        """Return whether a message runs or is with a live worker; true if that is unknown."""
        return (tag, row) in self._held.get(ref.incarnation, ()) or self.lists(ref, tag, row)

    def lists(self, ref: JobRef, tag: str, row: int) -> bool:
        """Return whether the record of a live worker lists a cell; true if that is unknown."""
        return self._listed is None or cell_name(ref, tag, row) in self._listed.names

    def count(self, ref: JobRef) -> int:
        """Return the number of messages of a job that run or that live workers have received."""
        received = self._listed.received.get(ref.incarnation, set()) if self._listed else set()
        return len(self._held.get(ref.incarnation, set()) | received)

    def held_rows(self, ref: JobRef, tag: str) -> IndexSet:
        """Return the rows of which an attempt is open, or whose message the broker is to deliver again."""
        return IndexSet(row for each, row in self._held.get(ref.incarnation, ()) if each == tag)

    @cached_property
    def _listed(self) -> _Listed | None:
        """None if a live worker may hold messages that its record does not list."""
        names: set[str] = set()
        received: defaultdict[str, set[CellKey]] = defaultdict(set)
        for record in each_worker(self._store):
            if record.lease_until <= self._now:
                continue
            report = Report.from_record(record)
            is_blocked = report.in_main_loop or report.idle * 1_000_000 > self._lease / RENEWALS
            if report.cut or not report.readable or (is_blocked and self._sends_ahead):
                return None
            names.update(report.cells)
            for row in report.received:
                names.add(cell_name(row.ref, row.tag, row.task_index))
                received[row.ref.incarnation].add((row.tag, row.task_index))
        return _Listed(frozenset(names), received)


class Rows(NamedTuple):
    """Rows with a published message: those that have not begun the stage of the message, and those that have."""

    unbegun: IndexSet
    begun: IndexSet


def not_ended(job: JobRecord, outbox: OutboxState, unpublished: IndexSet, columns: Iterable[Column]) -> dict[str, Rows]:
    """Return the published rows that have not ended, by the tag of their present stage.

    Args:
        unpublished: claimed rows that may not be published.
        columns: those of the job, with index sets.
    """
    by_tag = {column.tag: column for column in columns}
    waiting = unpublished.union(outbox.returned.begun, outbox.returned.waiting)
    published = IndexSet(range(outbox.claimed)).without(waiting)
    found: dict[str, Rows] = {}
    for stages, rows in job.plan.shapes if job.plan else ():
        left = rows.within(published)
        for tag in stages:
            column = by_tag.get(tag)
            if column is None:
                break
            missing, running, *ended = (
                each or IndexSet() for each in (column.missing, column.running, column.failed, column.not_run)
            )
            earlier = found.get(tag, Rows(IndexSet(), IndexSet()))
            found[tag] = Rows(earlier.unbegun.union(left.within(missing)), earlier.begun.union(left.within(running)))
            left = left.without(missing.union(running, *ended))
    return found


def begun_rows(job: JobRecord, columns: Iterable[Column]) -> int | None:
    """Return the number of rows of which the first stage has begun; None if their counts do not show it.

    They do if each tag of a first stage is the first one wherever it occurs.
    """
    shapes = job.plan.shapes if job.plan else ()
    first, later = {stages[0] for stages, _ in shapes}, {tag for stages, _ in shapes for tag in stages[1:]}
    if not first or first & later:
        return None
    return sum(column.tally.started for column in columns if column.tag in first)
