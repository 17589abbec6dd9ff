"""Which rows of a column have failed, run or are not started: from a script, or in portions while others write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from celery_statemanager.indexset import IndexSet
from celery_statemanager.stores.redis.keys import address_of
from celery_statemanager.stores.redis.layout import Layout, Ranks, set_bits
from celery_statemanager.stores.redis.server import Server

AT_ONCE = 1_000
"""Rows, or changes, in one portion."""

BYTES_AT_ONCE = 65_536
"""Bytes of a bitmap in one portion."""

Scores = Mapping[int, float | None]
"""What the order by status (see lua/common.lua) says of rows; None of those that have finished."""


class RowSets(NamedTuple):
    """The rows of a column by class; those that have finished are in none."""

    failed: IndexSet
    running: IndexSet
    missing: IndexSet
    not_run: IndexSet

    @classmethod
    def from_reply(
        cls, ranks: Ranks, failed: Any, running: Any, zero: Any, written: bytes | None, not_run: Any
    ) -> RowSets:
        """Read what ``columns.lua`` gives of a column."""
        zeros = IndexSet(map(int, zero)).union(ranks.unset(written or b""))
        failed, running, not_run = (IndexSet(map(int, rows)) for rows in (failed, running, not_run))
        return cls(failed, running, zeros, not_run)

    def corrected(self, scores: Scores) -> RowSets:
        """Give them with some rows put where they belong by now."""
        moved: tuple[list[int], ...] = ([], [], [], [])
        for row, score in scores.items():
            if score is not None:
                moved[_class_of(score)].append(row)
        changed = IndexSet(scores)
        return RowSets(*(rows.without(changed).union(IndexSet(more)) for rows, more in zip(self, moved)))


class Missed(Exception):
    """The job's stream does not tell of all changes any more."""


class Portions:
    """The row sets of some columns, right but for what has changed since they were read.

    Who scans sees all that was there all the time. What changed meanwhile stands in the job's stream, and is looked up:
    in portions, but for the last of it, which comes with the columns themselves; as of that moment all of it is right.

    Args:
        newest: the number of the job's newest change before this begins.

    Raises: Missed.
    """

    def __init__(self, server: Server, layout: Layout, tags: Sequence[str], newest: int) -> None:
        self._server = server
        self._layout = layout
        self._noted = newest
        self._changed: set[tuple[str, int]] = set()
        self._scores: dict[str, dict[int, float | None]] = {tag: {} for tag in tags}
        self._sets = {tag: self._read(tag) for tag in tags}

    def catch_up(self) -> int:
        """Look up what has changed; give the number of the change since which it was not, a few changes ago.

        Raises: Missed.
        """
        while True:
            looked_up, changed, self._changed = self._noted, list(self._changed), set()
            for start in range(0, len(changed), AT_ONCE):
                self._look_up(changed[start : start + AT_ONCE])
            if self._noted - looked_up < AT_ONCE:
                return looked_up

    def at_last(self, tags: Sequence[str], changes: Sequence[Any] | None) -> list[RowSets]:
        """Give the sets as of the moment of the columns with which the last changes came. Raises: Missed."""
        if changes is None or tags != [*self._sets]:
            raise Missed
        for address, score in zip(changes[::2], changes[1::2]):
            tag, row = address_of(address)
            self._scores[tag][row] = None if score is None else float(score)
        return [sets.corrected(self._scores[tag]) for tag, sets in self._sets.items()]

    def _read(self, tag: str) -> RowSets:
        _, low, written = self._layout.keys.column(tag)
        size = self._layout.job.num_tasks
        marked = [bytearray(size // 8 + 1) for _ in RowSets._fields]
        cursor = None
        while cursor != 0:
            ((cursor, rows),) = self._ask(("ZSCAN", low, cursor or 0, "COUNT", AT_ONCE))
            for name, score in rows:
                row = int(name)
                marked[_class_of(score)][row >> 3] |= 0x80 >> (row & 7)
        failed, running, zero, not_run = (set_bits(bytes(bitmap), size) for bitmap in marked)
        return RowSets(failed, running, zero.union(self._layout.ranks(tag).unset(self._bitmap(written))), not_run)

    def _bitmap(self, key: str) -> bytes:
        found: bytes = b""
        while True:
            (portion,) = self._ask(("GETRANGE", key, len(found), len(found) + BYTES_AT_ONCE - 1))
            found += portion
            if len(portion) < BYTES_AT_ONCE:
                return found

    def _look_up(self, changed: Sequence[tuple[str, int]]) -> None:
        wanted = [each for each in changed if each[0] in self._sets]
        scores = self._ask(*(("ZSCORE", self._layout.keys.column(tag)[1], f"{row:07}") for tag, row in wanted))
        for (tag, row), score in zip(wanted, scores):
            self._scores[tag][row] = score

    def _ask(self, *commands: Sequence[Any]) -> list[Any]:
        """Ask, and note what has changed before the answers: the stream may forget it later."""
        since = ("XRANGE", self._layout.keys.stream, f"{self._noted + 1}-0", "+", "COUNT", AT_ONCE)
        *replies, entries = self._server.call_all([*commands, since])
        for number, fields in entries:
            if int(number.partition(b"-")[0]) != self._noted + 1:
                raise Missed
            self._noted += 1
            if b"c" in fields:
                self._changed.add(address_of(fields[b"c"]))
        return replies


def _class_of(score: float) -> int:
    """Give the place of a row's class in ``RowSets``."""
    if score < 0:
        return 0 if score == int(score) else 3
    return 1 if score >= 1 else 2
