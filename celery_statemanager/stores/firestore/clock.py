"""The server's time, known without asking: every answer carries it."""

from __future__ import annotations

import time
from collections.abc import Callable

STALE = 60.0
"""Seconds after which an earlier, tighter reading no longer counts: local clocks drift."""

MILLISECOND = 1_000


class ServerClock:
    """Gives the latest time of which it is certain that the server's clock has passed it.

    An answer that carries the server time ``T`` and arrives at ``t`` proves that the server's clock was at least
    ``T`` at ``t``. Between two answers it goes on by the local monotonic clock; it is behind the server by the time
    an answer travels. Thread-safe without a lock, so that a fork finds none held.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._reading: tuple[int, float] | None = None
        self._latest = 0

    @property
    def known(self) -> bool:
        """Whether any answer has come yet."""
        return self._reading is not None

    @property
    def latest(self) -> int:
        """The latest server time seen in an answer."""
        return self._latest

    def learn(self, server: int) -> None:
        """Take note of a server time that has just arrived."""
        at = self._monotonic()
        self._latest = max(self._latest, server)
        offset = server - round(at * 1_000_000)
        reading = self._reading
        if reading is None or offset > reading[0] or at - reading[1] > STALE:
            self._reading = offset, at

    def now(self) -> int:
        """Give the time in microseconds, in whole milliseconds as the server stamps it."""
        reading = self._reading
        assert reading is not None
        certain = max(round(self._monotonic() * 1_000_000) + reading[0], self._latest)
        return certain - certain % MILLISECOND
