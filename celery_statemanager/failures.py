"""Group failed cells by cause, together with the later stages that did not run because of it. Pure."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from celery_statemanager.indexset import IndexSet, MutableIndexSet
from celery_statemanager.models import State

MOST_GROUPS = 50
MOST_RANGES = 250
"""Maximum ranges of rows that a report names for each group and tag."""

MOST_CHARACTERS = 200
"""Characters of a message that distinguish causes."""

_NOT_RUN = re.compile(r"not run: stage ('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\") failed: (.*)", re.DOTALL)
_NUMBER = re.compile(
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|\b(?:0x)?[0-9a-f]*\d[0-9a-f]*\b(?:[.,]\d+)*|\d+", re.IGNORECASE
)


class Cause(NamedTuple):
    """The common part of failed cells: the tag, the status, and the message with ``#`` for each number."""

    tag: str
    status: int
    message: str


@dataclass(frozen=True, slots=True)
class FailedRows:
    """Rows of one tag.

    Attributes:
        count: the number of rows; also the ``len()``.
        first: the rows of the first ranges, up to ``MOST_RANGES``.
    """

    count: int
    first: IndexSet

    @classmethod
    def from_set(cls, rows: MutableIndexSet) -> FailedRows:
        """Create a copy of the rows."""
        return cls(len(rows), IndexSet.from_ranges(islice(rows.ranges(), MOST_RANGES)))

    def __len__(self) -> int:
        return self.count

    @property
    def complete(self) -> bool:
        """Whether ``first`` holds all rows."""
        return len(self.first) == self.count


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """The cells that failed for one cause, and the cells that did not run because of it.

    Attributes:
        message: the message of one of the failed cells.
        varies: whether the messages differ in their numbers.
        rows: the rows that failed; empty if only cells of later stages were recorded.
        not_run: the rows that did not run, by tag.
    """

    cause: Cause
    message: str
    varies: bool
    rows: FailedRows
    not_run: Mapping[str, FailedRows]

    @property
    def text(self) -> str:
        """The message that all cells share, with ``#`` for numbers if they differ."""
        return self.cause.message if self.varies else self.message

    @property
    def not_run_count(self) -> int:
        """The number of cells that did not run."""
        return sum(map(len, self.not_run.values()))


@dataclass(frozen=True, slots=True)
class FailureReport:
    """All failures of a job.

    Attributes:
        groups: the groups, those with the most failed cells first.
        other_failed: the number of failed cells in no group.
        other_not_run: the number of cells in no group that did not run.
    """

    groups: list[FailureGroup]
    other_failed: int = 0
    other_not_run: int = 0


def cause_of(state: State) -> tuple[Cause, str, bool]:
    """Return the cause of a failed cell, the message of the cause, and whether the cell did not run."""
    tag, message = state.tag, state.message or ""
    blocked = _blocked_by(message)
    if blocked is not None:
        tag, message = blocked
        if message == str(int(state.status)):  # stands for a missing message
            message = ""
    shared = _NUMBER.sub("#", message[:MOST_CHARACTERS])
    return Cause(tag, int(state.status), shared), message, blocked is not None


def _blocked_by(message: str) -> tuple[str, str] | None:
    """Parse a message that ``transitions.blocked`` composed. Return the failed stage and its message."""
    found = _NOT_RUN.fullmatch(message)
    if found is None:
        return None
    try:
        return str(ast.literal_eval(found[1])), found[2]
    except (SyntaxError, ValueError):  # a message of the application
        return None


def group_failures(states: Iterable[State]) -> FailureReport:
    """Return the failures among some states, grouped by cause."""
    failures = Failures()
    for state in states:
        failures.record(state)
    return failures.report()


class Failures:
    """The failed cells of a job, updated with their newest states.

    Memory does not grow with the number of causes: cells of causes without a group are only counted. A new cause
    replaces a group with a single failed cell. Each group takes at most one bit per row.

    Args:
        most_groups: the maximum number of groups.
    """

    def __init__(self, most_groups: int = MOST_GROUPS) -> None:
        self._most = most_groups
        self._groups: dict[Cause, _Group] = {}
        self._failed: dict[str, MutableIndexSet] = {}
        self._not_run: dict[str, MutableIndexSet] = {}

    def __bool__(self) -> bool:
        return any((*self._failed.values(), *self._not_run.values()))

    def record(self, state: State) -> bool | None:
        """Record the newest state of a cell, or discard the cell if it has not failed.

        Returns: True if it failed, False if it did not run, None otherwise.
        """
        self.discard(state.tag, state.task_index)
        if not state.failed:
            return None
        cause, message, not_run = cause_of(state)
        (self._not_run if not_run else self._failed).setdefault(state.tag, MutableIndexSet()).add(state.task_index)
        group = self._groups.get(cause) or self._new_group(cause, message)
        if group is not None:
            rows = group.not_run.setdefault(state.tag, MutableIndexSet()) if not_run else group.rows
            rows.add(state.task_index)
            group.varies = group.varies or message != group.message
        return not not_run

    def discard(self, tag: str, row: int) -> None:
        """Remove a cell from the failures."""
        if tag in self._failed and self._failed[tag].discard(row):
            self._leave(row, ((group, group.rows) for group in self._groups.values() if group.cause.tag == tag))
        elif tag in self._not_run and self._not_run[tag].discard(row):
            self._leave(row, ((group, group.not_run[tag]) for group in self._groups.values() if tag in group.not_run))

    def report(self) -> FailureReport:
        """Return the current failures, grouped by cause."""
        groups = [group.frozen() for group in self._groups.values()]
        groups.sort(key=_order)
        failed, not_run = (sum(len(rows) for rows in each.values()) for each in (self._failed, self._not_run))
        return FailureReport(
            groups,
            failed - sum(group.rows.count for group in groups),
            not_run - sum(group.not_run_count for group in groups),
        )

    def _leave(self, row: int, places: Iterable[tuple[_Group, MutableIndexSet]]) -> None:
        for group, rows in places:
            if rows.discard(row):
                if not group.rows and not any(group.not_run.values()):
                    del self._groups[group.cause]
                return

    def _new_group(self, cause: Cause, message: str) -> _Group | None:
        if len(self._groups) >= self._most:
            single = next((each for each in self._groups.values() if len(each.rows) <= 1), None)
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
        self.rows = MutableIndexSet()
        self.not_run: dict[str, MutableIndexSet] = {}

    def frozen(self) -> FailureGroup:
        not_run = {tag: FailedRows.from_set(rows) for tag, rows in self.not_run.items() if rows}
        return FailureGroup(self.cause, self.message, self.varies, FailedRows.from_set(self.rows), not_run)


def _order(group: FailureGroup) -> tuple[bool, int, int, int]:
    rows = group.rows.first or next((each.first for each in group.not_run.values()), IndexSet([0]))
    return not group.rows.count, -group.rows.count, -group.not_run_count, rows.first
