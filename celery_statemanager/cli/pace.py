"""How fast a job goes, and when it will be done at that. Pure."""

from __future__ import annotations

from collections import deque

WINDOW = 60.0
"""Seconds over which the speed is taken."""

_SPACING = 1.0
_SHORTEST = 3.0


class Pace:
    """Work done over time; the speed of the last minute, before that of the whole run.

    Args:
        began_at: seconds on the clock of ``note``, when nothing was done yet.
    """

    def __init__(self, began_at: float) -> None:
        self._samples: deque[tuple[float, float]] = deque([(began_at, 0.0)])
        self._last = (began_at, 0.0)

    def note(self, at: float, done: float) -> None:
        """Take down how much is done, in cells."""
        self._last = (at, done)
        if at - self._samples[-1][0] >= _SPACING or len(self._samples) == 1:
            self._samples.append((at, done))
        while len(self._samples) > 2 and at - self._samples[1][0] >= WINDOW:
            self._samples.popleft()

    @property
    def rate(self) -> float | None:
        """Cells per second; None while it cannot be told."""
        (start, before), (end, after) = self._samples[0], self._last
        if end - start < _SHORTEST or after <= before:
            return None
        return (after - before) / (end - start)

    def eta(self, left: float) -> float | None:
        """Give the seconds that the rest will take; None while that cannot be told."""
        speed = self.rate
        return None if speed is None or left <= 0 else left / speed
