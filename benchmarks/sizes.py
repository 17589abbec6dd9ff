"""Costs that must not grow with the job: reading its aggregates and ending one of its tasks."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from benchmarks.filling import TAG, create_filled_job
from benchmarks.harness import Figure, Scale, alternate
from celery_statemanager import Manager, Status, Store, open_store
from celery_statemanager.records import Begin, Write
from tests.servers import running_redis

SMALL = 100
KINDS = ("memory", "SQLite", "Redis")


def measure(scale: Scale) -> Iterator[Figure]:
    """Compare each size with the smallest, for each store."""
    readers = [SMALL, *scale((300,), (10_000,), (10_000, 1_000_000))]
    for kind in KINDS:
        for what, costs in reading_costs(kind, readers, scale(5, 300, 1_000)).items():
            yield from _compared(f"{kind} {what}", costs, 2.0)
    ending = [SMALL, scale(300, 10_000, 100_000)]
    for kind in KINDS:
        yield from _compared(f"{kind} end of a task", ending_costs(kind, ending, scale(5, 500, 2_000)), 1.2)


READS: dict[str, Callable[[Manager], object]] = {
    "get_state()": lambda manager: manager.get_state(),
    "summary(indexes=False)": lambda manager: manager.summary(indexes=False),
}


def reading_costs(kind: str, sizes: list[int], rounds: int) -> dict[str, dict[int, float]]:
    """Return the median seconds of each read, by number of tasks."""
    with opened(kind) as store:
        managers = {str(size): create_filled_job(store, size) for size in sizes}
        return {what: _medians(managers, call, rounds) for what, call in READS.items()}


def ending_costs(kind: str, sizes: list[int], rounds: int) -> dict[int, float]:
    """Return the median seconds of a task's last write, including the check of latches, by number of tasks.

    The tasks fail, because a finished task cannot begin again. The last rows keep running, because the job would settle
    otherwise.
    """
    with opened(kind) as store:
        jobs = [(size, create_filled_job(store, size).ref) for size in sizes]
        times: dict[int, list[float]] = {size: [] for size in sizes}
        for number in range(rounds):
            for size, ref in jobs:
                row = number * 10 % (size - 10)
                begun = store.begin(ref, Begin(tag=TAG, task_index=row, owner="w", takes_over=True))
                end = Write.ending(TAG, row, int(Status.FAILED), attempt=begun.cell.attempt)
                start = time.perf_counter()
                store.write(ref, end)
                times[size].append(time.perf_counter() - start)
    return {size: statistics.median(each) for size, each in times.items()}


class opened(ExitStack):  # noqa: N801 - used like a function
    """Context manager that opens a store of a kind, with the server or folder that it needs."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind

    def __enter__(self) -> Store:
        super().__enter__()
        urls = {
            "memory": lambda: "memory://",
            "SQLite": lambda: f"sqlite:///{self.enter_context(tempfile.TemporaryDirectory())}/states.db",
            "Redis": lambda: self.enter_context(running_redis()).url,
        }
        return self.enter_context(open_store(urls[self._kind](), timeout=60.0))


def _medians(managers: dict[str, Manager], read: Callable[[Manager], object], rounds: int) -> dict[int, float]:
    calls = {size: lambda manager=manager: read(manager) for size, manager in managers.items()}
    return {int(size): median for size, median in alternate(calls, rounds).items()}


def _compared(what: str, costs: dict[int, float], limit: float) -> Iterator[Figure]:
    base = costs[SMALL] * 1e6
    for size, cost in costs.items():
        if size != SMALL:
            yield Figure(f"{what}, {size:,} tasks", f"itself at {SMALL}", cost * 1e6, base, "µs", limit)
