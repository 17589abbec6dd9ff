"""Sets of row indexes: an immutable one whose text is compressed, ``"3,17-20"``, and a mutable one. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from itertools import pairwise
from typing import Any

_CHUNK = 1_024


class IndexSet(AbstractSet[int]):
    """An immutable set of indexes >= 0, stored as disjoint ascending ranges.

    Memory and time grow with the number of ranges, not of indexes: a range of ten million rows is cheap.
    """

    __slots__ = ("_lows", "ranges")

    def __init__(self, indexes: Iterable[int] = ()) -> None:
        self.ranges: tuple[tuple[int, int], ...] = tuple(_ranges(indexes))
        self._lows = [low for low, _ in self.ranges]

    @classmethod
    def from_ranges(cls, ranges: Iterable[tuple[int, int]]) -> IndexSet:
        """Create a set from inclusive ``(low, high)`` pairs, which must be ascending and must not touch."""
        result = cls()
        result.ranges = tuple(ranges)
        result._lows = [low for low, _ in result.ranges]
        return result

    @classmethod
    def parse(cls, text: str) -> IndexSet:
        """Create a set from text such as ``"3,17-20"``. Raises: ValueError if it is malformed or not ascending."""
        pairs = []
        for part in filter(None, text.split(",")):
            low, dash, high = part.partition("-")
            pairs.append((int(low), int(high) if dash else int(low)))
        if any(low > high or low < 0 for low, high in pairs) or any(a[1] >= b[0] for a, b in pairwise(pairs)):
            raise ValueError(f"not an ascending index set like '3,17-20': {text!r}")
        return cls.from_ranges(_merged(pairs))

    def __contains__(self, index: object) -> bool:
        if not isinstance(index, int):
            return False
        at = bisect_right(self._lows, index) - 1
        return at >= 0 and index <= self.ranges[at][1]

    def __iter__(self) -> Iterator[int]:
        for low, high in self.ranges:
            yield from range(low, high + 1)

    def __len__(self) -> int:
        return sum(high - low + 1 for low, high in self.ranges)

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def __str__(self) -> str:
        return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in self.ranges)

    def __repr__(self) -> str:
        return f"IndexSet({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, IndexSet):
            return self.ranges == other.ranges
        return super().__eq__(other)

    def __hash__(self) -> int:
        return self._hash()

    def __reduce__(self) -> Any:
        return IndexSet.parse, (str(self),)

    @property
    def first(self) -> int:
        """The lowest index. Raises: IndexError if the set is empty."""
        return self.ranges[0][0]

    def after(self, number: int) -> int:
        """Return the index at position ``number`` in ascending order, from 0. Raises: IndexError if there is none."""
        left = number
        for low, high in self.ranges:
            if left <= high - low:
                return low + left
            left -= high - low + 1
        raise IndexError(number)

    def head(self, number: int) -> IndexSet:
        """Return the ``number`` lowest indexes, or all of them if there are fewer."""
        head: list[tuple[int, int]] = []
        left = number
        for low, high in self.ranges:
            if left <= 0:
                break
            head.append((low, min(high, low + left - 1)))
            left -= high - low + 1
        return IndexSet.from_ranges(head)

    def union(self, *others: IndexSet) -> IndexSet:
        """Return the indexes that are in this set or in any other."""
        pairs = sorted(pair for each in (self, *others) for pair in each.ranges)
        return IndexSet.from_ranges(_merged(pairs))

    def within(self, other: IndexSet) -> IndexSet:
        """Return the indexes that are in both sets."""
        return self.without(self.without(other))

    def without(self, other: IndexSet) -> IndexSet:
        """Return the indexes that are in this set but not in the other."""
        left: list[tuple[int, int]] = []
        holes = iter((*other.ranges, (2**63, 2**63)))
        hole = next(holes)
        for start, high in self.ranges:
            low = start
            while hole[1] < low:
                hole = next(holes)
            while hole[0] <= high:
                if low < hole[0]:
                    left.append((low, hole[0] - 1))
                low = hole[1] + 1
                if low > high:
                    break
                hole = next(holes)
            if low <= high:
                left.append((low, high))
        return IndexSet.from_ranges(left)


class MutableIndexSet:
    """A mutable set of indexes >= 0, stored as the bits of integers for ``_CHUNK`` indexes each."""

    __slots__ = ("_chunks", "_count")

    def __init__(self) -> None:
        self._chunks: dict[int, int] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, index: int) -> None:
        """Add an index."""
        number, at = divmod(index, _CHUNK)
        chunk = self._chunks.get(number, 0)
        self._count += not chunk >> at & 1
        self._chunks[number] = chunk | 1 << at

    def discard(self, index: int) -> bool:
        """Remove an index. Return whether it was in the set."""
        number, at = divmod(index, _CHUNK)
        chunk = self._chunks.get(number, 0)
        if not chunk >> at & 1:
            return False
        self._count -= 1
        self._chunks[number] = chunk ^ 1 << at
        return True

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield the disjoint ranges as inclusive ``(low, high)`` pairs in ascending order."""
        return _merged(self._ranges_by_chunk())

    def _ranges_by_chunk(self) -> Iterator[tuple[int, int]]:
        for number in sorted(self._chunks):
            left, start = self._chunks[number], number * _CHUNK
            while left:
                gap = (left & -left).bit_length() - 1
                left >>= gap
                run = (~left & (left + 1)).bit_length() - 1
                yield start + gap, start + gap + run - 1
                left >>= run
                start += gap + run


def _ranges(indexes: Iterable[int]) -> Iterator[tuple[int, int]]:
    if isinstance(indexes, IndexSet):
        return iter(indexes.ranges)
    if isinstance(indexes, range) and indexes.step == 1:
        return iter([(indexes.start, indexes.stop - 1)] if indexes else [])
    return _merged((index, index) for index in sorted(set(indexes)))


def _merged(pairs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    low = high = None
    for start, end in pairs:
        if high is not None and start <= high + 1:
            high = max(high, end)
            continue
        if low is not None and high is not None:
            yield low, high
        low, high = start, end
    if low is not None and high is not None:
        yield low, high
