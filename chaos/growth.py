"""Memory, files, threads, connections and stored entries over a long run, and whether they grow."""

from __future__ import annotations

import gc
import statistics
from contextlib import suppress

import psutil

from celery_statemanager.testing import processes
from chaos.places import Place

WARM_UP = 5
"""Samples at the start that are ignored: caches and pools fill."""

MIB = 2**20
ALLOWED_RATIO = 1.1
ALLOWED_MORE = {"MiB": 5.0, "files": 4.0, "threads": 3.0, "connections": 4.0, "keys": 200.0, "rows": 200.0}
"""Growth that counts as noise, by the last word of a name, in addition to ``ALLOWED_RATIO``."""


class Growth:
    """Samples of everything that must not grow.

    Args:
        worker: the process id of a worker that lives as long as the run.
    """

    def __init__(self, place: Place, worker: int) -> None:
        self._place = place
        self._pids = {"submitter": psutil.Process().pid, "worker": worker, **place.servers}
        self._samples: list[dict[str, float]] = []

    def sample(self) -> None:
        """Measure everything once."""
        gc.collect()
        sample: dict[str, float] = {}
        for name, pid in self._pids.items():
            family = processes.family(pid)[:1] if name == "submitter" else processes.family(pid)
            sample |= _process_sizes(name, family)
        for gauge in self._place.gauges:
            sample |= gauge()
        self._samples.append(sample)

    def latest(self) -> str:
        """Return the last sample as one line."""
        return ", ".join(f"{name} {value:.0f}" for name, value in self._samples[-1].items())

    def table(self) -> str:
        """Return the medians of the first and of the last quarter as a Markdown table."""
        lines = ["| what | first quarter | last quarter | grown |", "|---|---|---|---|"]
        for name, (first, last) in self._quarters().items():
            lines.append(f"| {name} | {first:,.0f} | {last:,.0f} | {'yes' if name in self.grown() else 'no'} |")
        return "\n".join(lines)

    def grown(self) -> list[str]:
        """Return the names of what has grown by more than noise."""
        return [
            name
            for name, (first, last) in self._quarters().items()
            if last > first * ALLOWED_RATIO + ALLOWED_MORE[name.split()[-1]]
        ]

    def _quarters(self) -> dict[str, tuple[float, float]]:
        samples = self._samples[WARM_UP:] or self._samples[-1:]
        size = max(1, len(samples) // 4)
        return {
            name: tuple(statistics.median(each[name] for each in part) for part in (samples[:size], samples[-size:]))
            for name in samples[-1]
        }


def _process_sizes(name: str, family: list[psutil.Process]) -> dict[str, float]:
    memory = files = threads = 0
    for process in family:
        with suppress(psutil.NoSuchProcess):  # a session of a server may end
            memory += process.memory_full_info().uss
            files += process.num_fds()
            threads += process.num_threads()
    return {f"{name}: MiB": memory / MIB, f"{name}: files": files, f"{name}: threads": threads}
