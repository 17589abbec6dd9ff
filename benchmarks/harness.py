"""Figures, and how they are measured: in turns, so that whatever slows the machine slows both sides alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

Clock = Callable[[], float]


class Scale:
    """How much is done: ``tiny`` to see that it works, ``quick`` within two minutes, ``full`` for the record."""

    NAMES = ("tiny", "quick", "full")

    def __init__(self, name: str) -> None:
        self.name = name
        self._at = self.NAMES.index(name)

    def __call__(self, tiny: T, quick: T, full: T) -> T:
        """Choose."""
        return (tiny, quick, full)[self._at]


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        ours, peer: medians, in ``unit``; no peer where the limit is a number of its own.
        limit: what ours is to reach: times the peer, or above it, or by itself, as ``kind`` says.
        at_least: whether more is better.
    """

    what: str
    against: str
    ours: float
    peer: float | None
    unit: str
    limit: float
    kind: str = "times"
    at_least: bool = False

    @property
    def measured(self) -> float:
        """What is compared with the limit."""
        if self.peer is None or self.kind == "alone":
            return self.ours
        return self.ours / self.peer if self.kind == "times" else self.ours - self.peer

    @property
    def reached(self) -> bool:
        """Whether the limit is kept, as far as two digits tell."""
        measured = round(self.measured, 2)
        return measured >= self.limit if self.at_least else measured <= self.limit

    def to_json(self) -> dict[str, Any]:
        """Give all of it."""
        return {**asdict(self), "measured": self.measured, "reached": self.reached}


def alternate(
    calls: Mapping[str, Callable[[], object]], rounds: int, *, batch: int = 1, clock: Clock = time.perf_counter
) -> dict[str, float]:
    """Call in turns; give each one's median in seconds.

    Args:
        batch: calls that are timed together, for what takes no longer than reading a clock.
    """
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = clock()
            for _ in range(batch):
                call()
            times[name].append((clock() - start) / batch)
    return {name: statistics.median(each) for name, each in times.items()}


def in_turns(measures: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Let each measure something itself, in turns."""
    found: dict[str, list[T]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            found[name].append(measure())
    return found


def medians(found: Mapping[str, Iterable[float]]) -> dict[str, float]:
    """Give each one's median."""
    return {name: statistics.median(each) for name, each in found.items()}


def peak_memory() -> float:
    """Give the peak of this program's memory, in MiB; ``ru_maxrss`` may be that of who started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
