"""Positions in the changes of a job. A time alone is no position, because transactions commit in any order."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from celery_statemanager.limits import invalid_since

_LONGEST = 100
_NUMBER = re.compile("[0-9]{1,20}")


@dataclass(frozen=True)
class Snapshot:
    """Which transactions had ended: those below ``xmin``, and those below ``xmax`` that did not run."""

    xmin: int
    xmax: int
    running: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Decode the text of the server's ``pg_snapshot``."""
        xmin, xmax, running = text.split(":")
        return cls(int(xmin), int(xmax), tuple(int(each) for each in running.split(",") if each))

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, self.running))}"


@dataclass(frozen=True)
class Position:
    """The changes that a reader has: all until ``complete``, and those until ``time`` that are in ``seen``.

    A change has a later time than all changes of the job that were committed before its transaction got its number.
    So once all transactions of a snapshot have ended, each change that is still to come is later than the newest one
    that the snapshot contained.

    Attributes:
        server: distinguishes the server, and the tables, from a copy that was restored.
        last_number: the first transaction that began after ``last_time`` was the time of the newest change.
        last_time: the value of ``complete`` once all transactions below ``last_number`` have ended.
    """

    complete: int
    time: int
    seen: Snapshot
    server: int
    last_number: int
    last_time: int

    @classmethod
    def at_end(cls, seen: Snapshot, newest: int, server: int, lookback: int) -> Position:
        """Return the position of a reader who needs no change of a snapshot.

        Args:
            newest: the time of the newest change in the snapshot.
            lookback: microseconds that a transaction which runs may take.
        """
        complete = newest if seen.xmin == seen.xmax else newest - lookback
        return cls(complete, newest, seen, server, seen.xmax, newest)

    def advanced(self, seen: Snapshot, newest: int) -> Position:
        """Return the position after all changes of a snapshot were read."""
        if seen.xmin == seen.xmax:
            return replace(self, complete=newest, time=newest, seen=seen, last_number=seen.xmax, last_time=newest)
        if seen.xmin >= self.last_number:
            complete = max(self.complete, self.last_time)
            return Position(complete, newest, seen, self.server, seen.xmax, newest)
        return replace(self, time=newest, seen=seen)

    def until(self, time: int) -> Position:
        """Return the position of a reader who has read only the changes until a time."""
        return replace(self, complete=min(self.complete, time), time=time)

    def __str__(self) -> str:
        """Encode a position in at most 100 digits and dashes. If many transactions run, some changes are repeated."""
        seen = self.seen
        numbers = (self.complete, self.time, self.server, seen.xmin, seen.xmax - seen.xmin, len(seen.running))
        text = "-".join(map(str, (*numbers, *(each - seen.xmin for each in seen.running))))
        if len(text) <= _LONGEST:
            return text
        return "-".join(map(str, (self.complete, self.complete, self.server, seen.xmin, 0, 0)))

    @classmethod
    def decode(cls, cursor: str) -> Position:
        """Decode a position. Raises: ValueError."""
        parts = cursor.split("-")
        if len(parts) < 6 or not all(_NUMBER.fullmatch(part) for part in parts):
            raise invalid_since(cursor)
        complete, time, server, xmin, width, count, *offsets = map(int, parts)
        if count != len(offsets) or max(complete, time, xmin + width) >= 2**63:
            raise invalid_since(cursor)
        seen = Snapshot(xmin, xmin + width, tuple(xmin + offset for offset in offsets))
        return cls(complete, time, seen, server, xmin + width, complete)
