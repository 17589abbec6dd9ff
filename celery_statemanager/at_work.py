"""Determine which messages run or are with a live worker, from the open attempts and the worker records of a sweep."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from typing import NamedTuple

from celery_statemanager.indexset import IndexSet
from celery_statemanager.leases import RENEWALS, Report, cell_name, each_worker
from celery_statemanager.records import JobRef, OpenAttempt
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
        sends_ahead: whether the broker sends messages to a worker whose main loop does not read them. Such a worker
            lists none.
        lease: in microseconds.
    """

    def __init__(self, store: WorkerRegistry, lease: int, now: int, *, sends_ahead: bool) -> None:
        self._store = store
        self._lease = lease
        self._now = now
        self._sends_ahead = sends_ahead
        self._held: defaultdict[str, set[CellKey]] = defaultdict(set)

    def add(self, attempt: OpenAttempt) -> None:
        """Add an attempt that is open, or whose message the broker is to deliver again."""
        self._held[attempt.ref.incarnation].add((attempt.tag, attempt.task_index))

    @property
    def is_known(self) -> bool:
        """Whether the records of all live workers list all messages that they have."""
        return self._listed is not None

    def has(self, ref: JobRef, tag: str, row: int) -> bool:
        """Return whether a message runs or is with a live worker; true if that is unknown."""
        held = (tag, row) in self._held.get(ref.incarnation, ())
        return held or self._listed is None or cell_name(ref, tag, row) in self._listed.names

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
