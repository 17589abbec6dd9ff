"""Figures and how to measure them: in turns, so that a slowdown of the machine affects both sides equally."""

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
    """The amount of work.

    ``tiny`` checks that a benchmark runs, ``quick`` takes two minutes in all, ``full`` measures the published figures.
    """

    NAMES = ("tiny", "quick", "full")

    def __init__(self, name: str) -> None:
        self.name = name
        self._at = self.NAMES.index(name)

    def __call__(self, tiny: T, quick: T, full: T) -> T:
        """Return the value for this scale."""
        return (tiny, quick, full)[self._at]


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    Attributes:
        ours, peer: medians in ``unit``; ``peer`` is None if the limit is absolute.
        limit: the bound of the measured value.
        kind: what is measured: ``times`` is the ratio to the peer, ``above`` the difference from it, ``alone`` ours.
        at_least: True if the limit is a minimum, False if it is a maximum.
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
        """The value that is compared with the limit."""
        if self.peer is None or self.kind == "alone":
            return self.ours
        return self.ours / self.peer if self.kind == "times" else self.ours - self.peer

    @property
    def reached(self) -> bool:
        """Whether the measured value, rounded to two decimals, meets the limit."""
        measured = round(self.measured, 2)
        return measured >= self.limit if self.at_least else measured <= self.limit

    def to_json(self) -> dict[str, Any]:
        """Return the fields, the measured value and whether it meets the limit."""
        return {**asdict(self), "measured": self.measured, "reached": self.reached}


def alternate(
    calls: Mapping[str, Callable[[], object]], rounds: int, *, batch: int = 1, clock: Clock = time.perf_counter
) -> dict[str, float]:
    """Call functions in turns and return the median duration of each, in seconds.

    Args:
        batch: number of calls that are timed together, for functions that are as fast as reading a clock.
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
    """Run measurements in turns and return the results of each."""
    results: dict[str, list[T]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            results[name].append(measure())
    return results


def medians(results: Mapping[str, Iterable[float]]) -> dict[str, float]:
    """Return the median of the results of each name."""
    return {name: statistics.median(each) for name, each in results.items()}


def peak_memory() -> float:
    """Return the peak memory of this process in MiB. ``ru_maxrss`` may contain the peak of its parent."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
