"""What never changes of a job, kept by each client once it was read: keys, plan, and the ranks of its rows."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate, chain

from celery_statemanager.aggregate import expected_tags, expects
from celery_statemanager.indexset import IndexSet
from celery_statemanager.records import JobRecord
from celery_statemanager.stores.redis.keys import JobKeys

Place = tuple[str, str, int, bool]
"""A cell's tag, row, rank among the rows expected under the tag (-1: none of them), and whether the job counts it."""


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
        """Give the rank of a row, -1 if it is not expected."""
        at = bisect_right(self._lows, row) - 1
        if at < 0 or row > self.rows.ranges[at][1]:
            return -1
        return self._starts[at] + row - self._lows[at]

    def row(self, rank: int) -> int:
        """Give the row of a rank."""
        at = bisect_right(self._starts, rank) - 1
        return self._lows[at] + rank - self._starts[at]

    def unset(self, bitmap: bytes) -> IndexSet:
        """Give the rows whose bit, by rank, is not set."""
        return IndexSet.from_ranges(_joined(self._spread(_clear_bits(bitmap, len(self)))))

    def _spread(self, ranks: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        for first, last in ranks:
            low = first
            while low <= last:
                high = min(last, self._starts[bisect_right(self._starts, low)] - 1)
                yield self.row(low), self.row(high)
                low = high + 1


class Layout:
    """One incarnation's keys, and which rows each tag expects.

    Attributes:
        job: as it was when first read; only its plan and number of tasks are of use later.
        seen: the tags that an unplanned job was last known to have.
        touched_at: when this process last noted the job as active; by the monotonic clock, in seconds.
    """

    def __init__(self, keys: JobKeys, job: JobRecord) -> None:
        self.keys = keys
        self.job = job
        self.seen: list[str] = []
        self.touched_at: float | None = None
        self._planned = {tag: Ranks(rows) for tag, rows in job.plan.columns.items()} if job.plan else {}
        self._all = Ranks(IndexSet(range(job.num_tasks)))
        self._steps: dict[tuple[tuple[str, ...], bool], tuple[str, ...]] = {}

    @property
    def planned(self) -> bool:
        """Whether the expected tags are known without asking."""
        return self.job.plan is not None

    @property
    def tags(self) -> list[str]:
        """The tags that count in aggregates, as far as known."""
        return expected_tags(self.job, self.seen)

    def ranks(self, tag: str) -> Ranks:
        """Give the ranks of the rows expected under a tag."""
        return self._planned.get(tag, self._all)

    def expects(self, tag: str, row: int) -> bool:
        """Whether a cell counts in the job's aggregates, once its tag has been seen."""
        return expects(self.job, tag, row)

    def place(self, tag: str, row: int) -> Place:
        """Give what scripts need to know of a cell."""
        if row < 0:
            return tag, str(row), -1, False
        planned = self._planned.get(tag)
        rank = (planned or self._all).rank(row)
        return tag, str(row), rank, planned is not None and rank >= 0

    def step_keys(self, tags: tuple[str, ...], *, of_callback: bool) -> tuple[str, ...]:
        """Give the keys of a step on cells under some tags, all of one row."""
        keys = self._steps.get((tags, of_callback))
        if keys is None:
            columns = [self.keys.column(tag) for tag in tags]
            if of_callback:
                columns = [(self.keys.callbacks, low, written) for _, low, written in columns]
            keys = (self.keys.head, self.keys.tallies, self.keys.open, self.keys.stream, *chain(*columns))
            self._steps[tags, of_callback] = keys
        return keys


def set_bits(bitmap: bytes, size: int) -> IndexSet:
    """Give the numbers, below a size, of the bits that are set."""
    return IndexSet.from_ranges(_joined(_clear_bits(bitmap.translate(_INVERTED), size)))


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


def _joined(pairs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    held: tuple[int, int] | None = None
    for low, high in pairs:
        if held and held[1] + 1 == low:
            held = (held[0], high)
            continue
        if held:
            yield held
        held = (low, high)
    if held:
        yield held
