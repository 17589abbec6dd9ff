"""Reading the rows of a query page by page, without a transaction in between, for the stores in SQL databases. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Row = tuple[Any, ...]


def rows_by_pages(read: Callable[[Row], list[Row]], after: Row, size: int) -> Iterator[Row]:
    """Yield the rows of a query whose first columns are its order.

    Args:
        read: returns the next page of ``size`` rows after the given values of these columns.
        after: the values before the first row.
    """
    width = len(after)
    while True:
        rows = read(after)
        yield from rows
        if len(rows) < size:
            return
        after = rows[-1][:width]


def without_repeats(pages: Iterable[list[Row]], num_tasks: int, tag: int, task_index: int) -> Iterator[list[Row]]:
    """Remove cells that a page contains again because they were written meanwhile. Needs one bit of memory a cell.

    Args:
        tag, task_index: the positions of these columns in a row.
    """
    passed: dict[Any, bytearray] = {}
    for page in pages:
        fresh = []
        for row in page:
            bits = passed.get(row[tag])
            if bits is None:
                bits = passed[row[tag]] = bytearray(num_tasks // 8 + 1)
            at, bit = row[task_index] >> 3, 1 << (row[task_index] & 7)
            if not bits[at] & bit:
                bits[at] |= bit
                fresh.append(row)
        yield fresh


def in_order(
    pages: Iterable[list[Row]], order: Callable[[Row], Any], timestamp: Callable[[Row], int]
) -> Iterator[list[Row]]:
    """Sort the rows of equal timestamps, across pages; the pages themselves are in the order of timestamps.

    Args:
        order: the key to sort by. It begins with the timestamp.
    """
    pending: list[Row] = []
    for page in pages:
        rows = pending + page
        rows.sort(key=order)
        cut = bisect_left(rows, timestamp(rows[-1]), key=timestamp) if rows else 0
        yield rows[:cut]
        pending = rows[cut:]
    yield pending
