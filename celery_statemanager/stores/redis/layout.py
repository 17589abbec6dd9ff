"""The unchangeable part of a job, which each client reads once: its keys, its plan and the ranks of its rows."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate, chain

from celery_statemanager.aggregate import ends_row, expected_tags, expects
from celery_statemanager.indexset import IndexSet
from celery_statemanager.records import JobRecord
from celery_statemanager.stores.redis.keys import JobKeys

RankedCell = tuple[str, str, int, bool, bool]
"""A cell as scripts need it: its tag, its row, the row's rank among those expected under the tag or -1, whether the job
counts it, and whether it is the last stage of its row."""

_INVERTED = bytes(range(255, -1, -1))


class Ranks:
    """The expected rows of a column, numbered without gaps: rank 0 is the lowest row."""

    def __init__(self, rows: IndexSet) -> None:
        self.rows = rows
        self._lows = [low for low, _ in rows.ranges]
        self._starts = [0, *accumulate(high - low + 1 for low, high in rows.ranges)]

    def __len__(self) -> int:
        return self._starts[-1]

    def rank(self, row: int) -> int:
        """Return the rank of a row, or -1 if it is not expected."""
        at = bisect_right(self._lows, row) - 1
        if at < 0 or row > self.rows.ranges[at][1]:
            return -1
        return self._starts[at] + row - self._lows[at]

    def row(self, rank: int) -> int:
        """Return the row of a rank."""
        at = bisect_right(self._starts, rank) - 1
        return self._lows[at] + rank - self._starts[at]

    def unset(self, bitmap: bytes) -> IndexSet:
        """Return the rows whose bit, at their rank, is not set."""
        return IndexSet.from_ranges(_merge_adjacent(self._row_ranges(_clear_bits(bitmap, len(self)))))

    def _row_ranges(self, ranks: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        for first, last in ranks:
            low = first
            while low <= last:
                high = min(last, self._starts[bisect_right(self._starts, low)] - 1)
                yield self.row(low), self.row(high)
                low = high + 1


class JobLayout:
    """One incarnation's keys, and the rows that each tag expects.

    Attributes:
        job: the job when first read; only its plan and number of tasks stay valid.
        tags_read: the tags that a job without a plan had when they were last read.
        touched_at: when this process last recorded the job as active, by the monotonic clock in seconds.
    """

    def __init__(self, keys: JobKeys, job: JobRecord) -> None:
        self.keys = keys
        self.job = job
        self.tags_read: list[str] = []
        self.touched_at: float | None = None
        self._planned = {tag: Ranks(rows) for tag, rows in job.plan.columns.items()} if job.plan else {}
        self._all = Ranks(IndexSet(range(job.num_tasks)))
        self._steps: dict[tuple[tuple[str, ...], bool, bool], tuple[str, ...]] = {}

    @property
    def planned(self) -> bool:
        """Whether the job has a plan, which defines the expected tags."""
        return self.job.plan is not None

    @property
    def tags(self) -> list[str]:
        """The expected tags; for a job without a plan, those that were last read."""
        return expected_tags(self.job, self.tags_read)

    def ranks(self, tag: str) -> Ranks:
        """Return the ranks of the rows expected under a tag."""
        return self._planned.get(tag, self._all)

    def expects(self, tag: str, row: int) -> bool:
        """Return whether a cell counts in the job's aggregates once its tag exists."""
        return expects(self.job, tag, row)

    def ranked_cell(self, tag: str, row: int) -> RankedCell:
        """Return a cell's description for scripts."""
        if row < 0:
            return tag, str(row), -1, False, False
        planned = self._planned.get(tag)
        rank = (planned or self._all).rank(row)
        return tag, str(row), rank, planned is not None and rank >= 0, ends_row(self.job, tag, row)

    def step_keys(self, tags: tuple[str, ...], *, of_callback: bool, with_outbox: bool) -> tuple[str, ...]:
        """Return the keys of a step on the cells of one row under some tags.

        Args:
            with_outbox: whether the step may need the keys of lua/returned.lua.
        """
        keys = self._steps.get((tags, of_callback, with_outbox))
        if keys is None:
            columns = [self.keys.column(tag) for tag in tags]
            if of_callback:
                columns = [(self.keys.callbacks, low, written) for _, low, written in columns]
            keys = (self.keys.head, self.keys.tallies, self.keys.open, self.keys.stream, *chain(*columns))
            if with_outbox:
                keys = (*keys, self.keys.values, self.keys.returned)
            self._steps[tags, of_callback, with_outbox] = keys
        return keys


def set_bits(bitmap: bytes, size: int) -> IndexSet:
    """Return the numbers, below a size, of the bits that are set."""
    return IndexSet.from_ranges(_merge_adjacent(_clear_bits(bitmap.translate(_INVERTED), size)))


def _clear_bits(bitmap: bytes, size: int) -> Iterator[tuple[int, int]]:
    for part in re.finditer(rb"\x00+|[^\x00\xff]", bitmap, re.DOTALL):
        first = part.start() * 8
        if not part[0][0]:
            yield first, min(part.end() * 8, size) - 1
            continue
        for bit in range(min(8, size - first)):
            if not part[0][0] & 0x80 >> bit:
                yield first + bit, first + bit
    if len(bitmap) * 8 < size:
        yield len(bitmap) * 8, size - 1


def _merge_adjacent(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    pending: tuple[int, int] | None = None
    for low, high in ranges:
        if pending and pending[1] + 1 == low:
            pending = (pending[0], high)
            continue
        if pending:
            yield pending
        pending = (low, high)
    if pending:
        yield pending
