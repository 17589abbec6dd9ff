"""The cells that a job expects: its rows and, per row, the tags in the order in which they run. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from celery_statemanager.errors import truncate
from celery_statemanager.indexset import IndexSet
from celery_statemanager.limits import check_index, check_name

PlanSpec = Sequence[str] | Mapping[str, Iterable[int]]
"""A plan as callers write it: tags for all rows, or a mapping of each tag to its row indexes."""


@dataclass(frozen=True)
class Plan:
    """The expected cells of a job.

    Rows with the same stages share one entry, so a uniform job of any size has a single entry.

    Attributes:
        shapes: ``(stages, rows)`` pairs. Each row of the job is in exactly one of them.
    """

    shapes: tuple[tuple[tuple[str, ...], IndexSet], ...]

    @classmethod
    def from_spec(cls, num_tasks: int, tags: PlanSpec) -> Plan:
        """Create a plan from a caller's tags.

        Raises: TypeError if they have the wrong type; ValueError if a tag is invalid or repeated, or a row has none.
        """
        if isinstance(tags, (str, bytes)) or not isinstance(tags, Iterable):
            raise TypeError(
                f"tags must be a sequence of names or a mapping tag -> indexes, not {tags!r}: write tags=({tags!r},)"
            )
        if isinstance(tags, Mapping):
            return cls(tuple(_shapes(num_tasks, {check_name("tag", tag): rows for tag, rows in tags.items()})))
        names = tuple(check_name("tag", tag) for tag in tags)
        if not names:
            raise ValueError("tags is empty: name at least one tag, or pass None for a job without a plan")
        if len(set(names)) < len(names):
            raise ValueError(f"tags contains a name twice, name each tag once: {names!r}")
        return cls(((names, IndexSet(range(num_tasks))),))

    @cached_property
    def columns(self) -> Mapping[str, IndexSet]:
        """The rows expected under each tag, tags in the order they first run."""
        return _rows_by_tag((tag, rows) for stages, rows in self.shapes for tag in stages)

    @cached_property
    def _last_rows(self) -> Mapping[str, IndexSet]:
        """The rows of which each tag is the last stage."""
        return _rows_by_tag((stages[-1], rows) for stages, rows in self.shapes)

    @cached_property
    def expected(self) -> int:
        """The number of expected cells."""
        return sum(len(stages) * len(rows) for stages, rows in self.shapes)

    @property
    def tags(self) -> tuple[str, ...]:
        """All planned tags, in the order they first run."""
        return tuple(self.columns)

    @cached_property
    def _starts(self) -> list[tuple[int, int]]:
        """The first row of each range and the number of its shape, ascending."""
        return sorted((low, number) for number, (_, rows) in enumerate(self.shapes) for low, _ in rows.ranges)

    def expects(self, tag: str, task_index: int) -> bool:
        """Return whether the plan contains the cell. Only such cells count in row and grid aggregates."""
        rows = self.columns.get(tag)
        return rows is not None and task_index in rows

    def stages(self, task_index: int) -> tuple[str, ...]:
        """Return the tags of a row in the order in which they run. A row outside the plan has none."""
        if not self._starts:  # a job without rows
            return ()
        at = bisect_right(self._starts, (task_index, len(self.shapes))) - 1
        stages, rows = self.shapes[self._starts[at][1]]
        return stages if task_index in rows else ()

    def ends_row(self, tag: str, task_index: int) -> bool:
        """Return whether a tag is the last stage of a row."""
        rows = self._last_rows.get(tag)
        return rows is not None and task_index in rows

    def after(self, tag: str, task_index: int) -> tuple[str, ...]:
        """Return the tags of a row that run after ``tag``. A tag that is not a stage of the row has none."""
        stages = self.stages(task_index)
        return stages[stages.index(tag) + 1 :] if tag in stages else ()

    def before(self, tag: str, task_index: int) -> tuple[str, ...]:
        """Return the tags of a row that run before ``tag``, the last one first."""
        stages = self.stages(task_index)
        return stages[: stages.index(tag)][::-1] if tag in stages else ()

    def in_order_of(self, other: Plan) -> Plan:
        """Return this plan with the stages that it shares with ``other`` in the order of ``other``.

        This plan must contain ``other``.
        """
        return Plan(
            tuple(
                (_reordered(stages, ordered), both)
                for stages, rows in self.shapes
                for ordered, others in other.shapes
                if (both := rows.within(others))
            )
        )


def _rows_by_tag(pairs: Iterable[tuple[str, IndexSet]]) -> Mapping[str, IndexSet]:
    """Return the union of the rows of each tag, tags in the order they first occur."""
    rows: dict[str, list[IndexSet]] = {}
    for tag, indexes in pairs:
        rows.setdefault(tag, []).append(indexes)
    return {tag: sets[0].union(*sets[1:]) for tag, sets in rows.items()}


def _reordered(stages: tuple[str, ...], ordered: tuple[str, ...]) -> tuple[str, ...]:
    """Return ``stages`` with its members of ``ordered`` sorted as in ``ordered``; the others keep their positions."""
    following = iter(ordered)
    return tuple(next(following) if tag in ordered else tag for tag in stages)


def _shapes(num_tasks: int, columns: Mapping[str, Iterable[int]]) -> Iterable[tuple[tuple[str, ...], IndexSet]]:
    sets = {tag: _rows(num_tasks, tag, rows) for tag, rows in columns.items()}
    uncovered = IndexSet(range(num_tasks)).without(IndexSet().union(*sets.values()))
    if uncovered:
        raise ValueError(f"the plan has no tag for task {truncate(str(uncovered))}: every row needs at least one")
    names, changes = list(sets), _changes(sets.values())
    shapes: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    active: set[int] = set()
    for low, end in pairwise(sorted(changes)):
        active.symmetric_difference_update(changes[low])
        if active:
            shapes.setdefault(tuple(names[number] for number in sorted(active)), []).append((low, end - 1))
    return [(stages, IndexSet.from_ranges(pairs)) for stages, pairs in shapes.items()]


def _changes(sets: Iterable[IndexSet]) -> Mapping[int, list[int]]:
    """Return the rows at which ranges start or have just ended, each with the numbers of the sets concerned."""
    changes: dict[int, list[int]] = {}
    for number, rows in enumerate(sets):
        for low, high in rows.ranges:
            changes.setdefault(low, []).append(number)
            changes.setdefault(high + 1, []).append(number)
    return changes


def _rows(num_tasks: int, tag: str, rows: Iterable[int]) -> IndexSet:
    if isinstance(rows, (str, bytes)) or not isinstance(rows, Iterable):
        raise TypeError(f"the rows of tag {tag!r} must be indexes, not {rows!r}")
    try:
        if isinstance(rows, range) and rows and rows.step == 1:
            check_index(rows.start, num_tasks)
            check_index(rows.stop - 1, num_tasks)
            return IndexSet(rows)
        return IndexSet(check_index(row, num_tasks) for row in rows)
    except ValueError as error:
        raise ValueError(f"the rows of tag {tag!r}: {error}") from None
