"""Group failed cells by cause, together with the later stages that did not run because of it. Pure."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import State

MOST_GROUPS = 50
MOST_RANGES = 250
"""Ranges of rows that a report names for each group and tag."""

MOST_CHARACTERS = 200
"""Characters of a message by which causes are told apart."""

_NOT_RUN = re.compile(r"not run: stage ('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\") failed: (.*)", re.DOTALL)
_NUMBER = re.compile(
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|\b(?:0x)?[0-9a-f]*\d[0-9a-f]*\b(?:[.,]\d+)*|\d+", re.IGNORECASE
)
_CHUNK = 1_024


class Cause(NamedTuple):
    """What failed cells have in common: the tag, the status, and the message with ``#`` for each number."""

    tag: str
    status: int
    message: str


@dataclass(frozen=True, slots=True)
class FailedRows:
    """Rows of one tag.

    Attributes:
        count: how many rows there are; also the ``len()``.
        first: the rows of the first ranges, up to ``MOST_RANGES``.
    """

    count: int
    first: IndexSet

    def __len__(self) -> int:
        return self.count

    @property
    def complete(self) -> bool:
        """Whether ``first`` holds all rows."""
        return len(self.first) == self.count


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """The cells that failed for one cause, and the cells that were not run because of it.

    Attributes:
        message: the message of one of the failed cells.
        varies: whether the messages differ in their numbers.
        rows: the rows that failed; none if only later stages were seen.
        not_run: the rows that were not run, by tag.
    """

    cause: Cause
    message: str
    varies: bool
    rows: FailedRows
    not_run: Mapping[str, FailedRows]

    @property
    def text(self) -> str:
        """The message that all cells share, with ``#`` for numbers that differ."""
        return self.cause.message if self.varies else self.message

    @property
    def not_run_count(self) -> int:
        """The number of cells that were not run."""
        return sum(map(len, self.not_run.values()))


@dataclass(frozen=True, slots=True)
class FailureReport:
    """All failures of a job.

    Attributes:
        groups: the causes with the most failed cells first.
        other_failed: the number of failed cells in no group.
        other_not_run: the number of cells in no group that were not run.
    """

    groups: list[FailureGroup]
    other_failed: int = 0
    other_not_run: int = 0


def cause_of(state: State) -> tuple[Cause, str, bool]:
    """Return the cause of a failed cell, the message of the cause, and whether the cell was not run."""
    tag, message = state.tag, state.message or ""
    blocked = _blocked_by(message)
    if blocked is not None:
        tag, message = blocked
        if message == str(int(state.status)):  # stands for a missing message
            message = ""
    shared = _NUMBER.sub("#", message[:MOST_CHARACTERS])
    return Cause(tag, int(state.status), shared), message, blocked is not None


def _blocked_by(message: str) -> tuple[str, str] | None:
    """Return the failed stage and its message that ``transitions.blocked`` put into a message."""
    found = _NOT_RUN.fullmatch(message)
    if found is None:
        return None
    try:
        return str(ast.literal_eval(found[1])), found[2]
    except (SyntaxError, ValueError):  # an application's own words
        return None


def group_failures(states: Iterable[State]) -> FailureReport:
    """Group the failed ones among some states."""
    failures = Failures()
    for state in states:
        failures.record(state)
    return failures.report()


class Failures:
    """The failed cells of a job, kept up to date by their newest states.

    Memory does not grow with the number of causes: cells of causes without a group are counted only. A cause with a
    single failed cell gives way to a new cause. Each group takes one bit a row at most.

    Args:
        most_groups: the number of causes that are kept apart.
    """

    def __init__(self, most_groups: int = MOST_GROUPS) -> None:
        self._most = most_groups
        self._groups: dict[Cause, _Group] = {}
        self._failed: dict[str, _Rows] = {}
        self._not_run: dict[str, _Rows] = {}

    def __bool__(self) -> bool:
        return any(rows.count for rows in (*self._failed.values(), *self._not_run.values()))

    def record(self, state: State) -> bool | None:
        """Record the newest state of a cell; one that has not failed is forgotten.

        Returns: True if it failed, False if it was not run, None otherwise.
        """
        self.discard(state.tag, state.task_index)
        if not state.failed:
            return None
        cause, message, not_run = cause_of(state)
        (self._not_run if not_run else self._failed).setdefault(state.tag, _Rows()).add(state.task_index)
        group = self._groups.get(cause) or self._new_group(cause, message)
        if group is not None:
            rows = group.not_run.setdefault(state.tag, _Rows()) if not_run else group.rows
            rows.add(state.task_index)
            group.varies = group.varies or message != group.message
        return not not_run

    def discard(self, tag: str, row: int) -> None:
        """Forget a cell."""
        if tag in self._failed and self._failed[tag].discard(row):
            self._leave(row, ((group, group.rows) for group in self._groups.values() if group.cause.tag == tag))
        elif tag in self._not_run and self._not_run[tag].discard(row):
            self._leave(row, ((group, group.not_run[tag]) for group in self._groups.values() if tag in group.not_run))

    def report(self) -> FailureReport:
        """Return the failures by cause."""
        groups = [group.frozen() for group in self._groups.values()]
        groups.sort(key=_order)
        failed, not_run = (sum(rows.count for rows in each.values()) for each in (self._failed, self._not_run))
        return FailureReport(
            groups,
            failed - sum(group.rows.count for group in groups),
            not_run - sum(group.not_run_count for group in groups),
        )

    def _leave(self, row: int, places: Iterable[tuple[_Group, _Rows]]) -> None:
        for group, rows in places:
            if rows.discard(row):
                if not group.rows.count and not any(each.count for each in group.not_run.values()):
                    del self._groups[group.cause]
                return

    def _new_group(self, cause: Cause, message: str) -> _Group | None:
        if len(self._groups) >= self._most:
            single = next((each for each in self._groups.values() if each.rows.count <= 1), None)
            if single is None:
                return None
            del self._groups[single.cause]
        group = self._groups[cause] = _Group(cause, message)
        return group


class _Group:
    __slots__ = ("cause", "message", "not_run", "rows", "varies")

    def __init__(self, cause: Cause, message: str) -> None:
        self.cause = cause
        self.message = message
        self.varies = False
        self.rows = _Rows()
        self.not_run: dict[str, _Rows] = {}

    def frozen(self) -> FailureGroup:
        not_run = {tag: rows.frozen() for tag, rows in self.not_run.items() if rows.count}
        return FailureGroup(self.cause, self.message, self.varies, self.rows.frozen(), not_run)


class _Rows:
    """A set of rows as bits of integers, each for ``_CHUNK`` rows."""

    __slots__ = ("_chunks", "count")

    def __init__(self) -> None:
        self._chunks: dict[int, int] = {}
        self.count = 0

    def add(self, row: int) -> None:
        number, at = divmod(row, _CHUNK)
        chunk = self._chunks.get(number, 0)
        self.count += not chunk >> at & 1
        self._chunks[number] = chunk | 1 << at

    def discard(self, row: int) -> bool:
        """Remove a row; return whether it was there."""
        number, at = divmod(row, _CHUNK)
        chunk = self._chunks.get(number, 0)
        if not chunk >> at & 1:
            return False
        self.count -= 1
        self._chunks[number] = chunk ^ 1 << at
        return True

    def frozen(self) -> FailedRows:
        first = IndexSet.from_ranges(islice(self._ranges(), MOST_RANGES))
        return FailedRows(self.count, IndexSet().union(first))  # joins what meets at the border of two chunks

    def _ranges(self) -> Iterator[tuple[int, int]]:
        for number in sorted(self._chunks):
            left, start = self._chunks[number], number * _CHUNK
            while left:
                gap = (left & -left).bit_length() - 1
                left >>= gap
                run = (~left & (left + 1)).bit_length() - 1
                yield start + gap, start + gap + run - 1
                left >>= run
                start += gap + run


def _order(group: FailureGroup) -> tuple[bool, int, int, int]:
    rows = group.rows.first or next((each.first for each in group.not_run.values()), IndexSet([0]))
    return not group.rows.count, -group.rows.count, -group.not_run_count, rows.first
