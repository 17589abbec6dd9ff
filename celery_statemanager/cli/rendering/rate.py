"""Compute the rate of progress and the remaining time. Pure."""

from __future__ import annotations

from collections import deque

WINDOW = 60.0
"""Seconds over which the rate is measured."""

_SPACING = 1.0
_SHORTEST = 3.0


class Rate:
    """Measure the rate over the last minute or, until a minute was watched, over the whole run.

    Args:
        began_at: time at which nothing was done yet, in seconds on the clock of ``add``.
    """

    def __init__(self, began_at: float) -> None:
        self._samples: deque[tuple[float, float]] = deque([(began_at, 0.0)])
        self._last = (began_at, 0.0)

    def add(self, at: float, done: float) -> None:
        """Record how many cells are done."""
        self._last = (at, done)
        if at - self._samples[-1][0] >= _SPACING or len(self._samples) == 1:
            self._samples.append((at, done))
        while len(self._samples) > 2 and at - self._samples[1][0] >= WINDOW:
            self._samples.popleft()

    @property
    def per_second(self) -> float | None:
        """Cells per second; None while unknown."""
        (start, before), (end, after) = self._samples[0], self._last
        if end - start < _SHORTEST or after <= before:
            return None
        return (after - before) / (end - start)

    def eta(self, left: float) -> float | None:
        """Return the seconds until the remaining cells are done; None while unknown."""
        speed = self.per_second
        return None if speed is None or left <= 0 else left / speed
