"""The rows of a column by class (failed, running, …), from one script or in chunks during concurrent writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from celery_statemanager.indexset import IndexSet
from celery_statemanager.stores.redis.keys import cell_key_of
from celery_statemanager.stores.redis.layout import JobLayout, Ranks, set_bits
from celery_statemanager.stores.redis.server import Server
from celery_statemanager.stores.redis.tuning import Tuning

Scores = Mapping[int, float | None]
"""The scores of rows in the sorted set ``low`` (see lua/common.lua); None for finished rows."""


class RowSets(NamedTuple):
    """The rows of a column by class. Finished rows are in none of the sets."""

    failed: IndexSet
    running: IndexSet
    missing: IndexSet
    not_run: IndexSet

    @classmethod
    def from_reply(
        cls, ranks: Ranks, failed: Any, running: Any, zero: Any, written: bytes | None, not_run: Any
    ) -> RowSets:
        """Decode the row sets of a column in a reply of ``columns.lua``."""
        zeros = IndexSet(map(int, zero)).union(ranks.unset(written or b""))
        failed, running, not_run = (IndexSet(map(int, rows)) for rows in (failed, running, not_run))
        return cls(failed, running, zeros, not_run)

    def updated(self, scores: Scores) -> RowSets:
        """Return the sets with some rows moved to the class of their current score."""
        moved: tuple[list[int], ...] = ([], [], [], [])
        for row, score in scores.items():
            if score is not None:
                moved[_class_of(score)].append(row)
        changed = IndexSet(scores)
        return RowSets(*(rows.without(changed).union(IndexSet(more)) for rows, more in zip(self, moved)))


class StreamTrimmed(Exception):
    """The job's stream does not contain all changes that are needed."""


class ChunkedRowSets:
    """The row sets of some columns, read in chunks during concurrent writes.

    A scan returns every row that is in the set all the time. Rows that change during the scan are in the job's stream,
    and their scores are read again, in chunks. The script that reads the columns also reads the scores of the last
    changes, so that the sets and the columns are of the same moment.

    Args:
        newest: the number of the job's newest change before the scan.

    Raises: StreamTrimmed.
    """

    def __init__(self, server: Server, layout: JobLayout, tags: Sequence[str], newest: int, tuning: Tuning) -> None:
        self._server = server
        self._layout = layout
        self._newest = newest
        self._chunk = tuning.set_chunk
        self._bitmap_chunk = tuning.bitmap_chunk
        self._changed: set[tuple[str, int]] = set()
        self._scores: dict[str, dict[int, float | None]] = {tag: {} for tag in tags}
        self._sets = {tag: self._read(tag) for tag in tags}

    def catch_up(self) -> int:
        """Read the scores of changed rows until only a few are left; return the number of the change before those.

        Raises: StreamTrimmed.
        """
        while True:
            read_until, changed, self._changed = self._newest, list(self._changed), set()
            for start in range(0, len(changed), self._chunk):
                self._read_scores(changed[start : start + self._chunk])
            if self._newest - read_until < self._chunk:
                return read_until

    def finish(self, tags: Sequence[str], changes: Sequence[Any] | None) -> list[RowSets]:
        """Return the sets at the moment of the columns that were read with these changes. Raises: StreamTrimmed."""
        if changes is None or tags != [*self._sets]:
            raise StreamTrimmed
        for address, score in zip(changes[::2], changes[1::2]):
            tag, row = cell_key_of(address)
            self._scores[tag][row] = None if score is None else float(score)
        return [sets.updated(self._scores[tag]) for tag, sets in self._sets.items()]

    def _read(self, tag: str) -> RowSets:
        _, low, written = self._layout.keys.column(tag)
        size = self._layout.job.num_tasks
        bitmaps = [bytearray(size // 8 + 1) for _ in RowSets._fields]
        cursor = None
        while cursor != 0:
            ((cursor, rows),) = self._call(("ZSCAN", low, cursor or 0, "COUNT", self._chunk))
            for name, score in rows:
                row = int(name)
                bitmaps[_class_of(score)][row >> 3] |= 0x80 >> (row & 7)
        failed, running, zero, not_run = (set_bits(bytes(bitmap), size) for bitmap in bitmaps)
        return RowSets(failed, running, zero.union(self._layout.ranks(tag).unset(self._bitmap(written))), not_run)

    def _bitmap(self, key: str) -> bytes:
        bitmap: bytes = b""
        while True:
            (chunk,) = self._call(("GETRANGE", key, len(bitmap), len(bitmap) + self._bitmap_chunk - 1))
            bitmap += chunk
            if len(chunk) < self._bitmap_chunk:
                return bitmap

    def _read_scores(self, changed: Sequence[tuple[str, int]]) -> None:
        cells = [each for each in changed if each[0] in self._sets]
        scores = self._call(*(("ZSCORE", self._layout.keys.column(tag)[1], f"{row:07}") for tag, row in cells))
        for (tag, row), score in zip(cells, scores):
            self._scores[tag][row] = score

    def _call(self, *commands: Sequence[Any]) -> list[Any]:
        """Send commands and collect the changes before their replies, while the stream still contains them."""
        since = ("XRANGE", self._layout.keys.stream, f"{self._newest + 1}-0", "+", "COUNT", self._chunk)
        *replies, entries = self._server.call_all([*commands, since])
        for number, fields in entries:
            if int(number.partition(b"-")[0]) != self._newest + 1:
                raise StreamTrimmed
            self._newest += 1
            if b"c" in fields:
                self._changed.add(cell_key_of(fields[b"c"]))
        return replies


def _class_of(score: float) -> int:
    """Return the position of a row's class in ``RowSets``."""
    if score < 0:
        return 0 if score == int(score) else 3
    return 1 if score >= 1 else 2
