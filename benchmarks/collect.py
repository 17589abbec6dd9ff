"""What garbage collection costs: many small jobs, and one of many states. Time, calls to the store, memory.

python -m benchmarks.collect                                        memory and SQLite
python -m benchmarks.collect redis://localhost:6379/0 --jobs 10000 --states 100000
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.harness import peak_memory
from celery_statemanager import Store, collect_garbage, open_store
from celery_statemanager.garbage import GarbageReport
from celery_statemanager.manager import new_event_id, new_job
from celery_statemanager.records import Write
from celery_statemanager.stores.wrapped import WrappedStore

T = TypeVar("T")


class Counting(WrappedStore):
    """Counts calls, and notes the longest: others may wait for as long."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.calls: Counter[str] = Counter()
        self.longest = (0.0, "")

    def calling(self, method: str, call: Callable[[], T]) -> T:
        self.calls[method] += 1
        began = time.perf_counter()
        try:
            return call()
        finally:
            self.longest = max(self.longest, (time.perf_counter() - began, method))


def fill(store: Store, jobs: int, states: int) -> None:
    """Make jobs, with states spread over their rows."""
    for number in range(jobs):
        ref = store.create_job(new_job(f"job {number}", max(states, 1), ("a",))).ref
        for row in range(states):
            store.write(ref, Write(tag="a", task_index=row, status=40, event_id=new_event_id(), message="page 4"))
    pause, newest = threading.Event(), store.now()
    while store.now() <= newest + 10_000:
        pause.wait(0.01)


def measure(what: str, store: Store, **ages: Any) -> None:
    """Collect once; print what it took."""
    counting = Counting(store)
    before, began = peak_memory(), time.perf_counter()
    report: GarbageReport = collect_garbage(counting, **ages)
    took = time.perf_counter() - began
    grown = peak_memory() - before
    calls = ", ".join(f"{count} {method}" for method, count in counting.calls.most_common(5))
    print(f"  {what:<28} {took:8.2f} s  +{grown:.0f} MiB  {sum(counting.calls.values())} calls ({calls})")
    print(f"  {'':<28} longest call {counting.longest[0] * 1000:.0f} ms ({counting.longest[1]}); {report}")


def run(url: str, jobs: int, states: int) -> None:
    """Measure one store, which must be empty."""
    hour, moment = 3600.0, 0.001
    with open_store(url, timeout=60.0) as store:
        print(url.partition("://")[0])
        if jobs:
            fill(store, jobs, 1)
            measure(f"nothing idle, {jobs} jobs", store, tombstone_age=hour, delete_age=2 * hour)
            measure(f"hide {jobs} jobs", store, tombstone_age=moment, delete_age=hour)
            measure(f"delete {jobs} jobs", store, tombstone_age=moment, delete_age=2 * moment)
        if states:
            fill(store, 1, states)
            measure(f"delete 1 job of {states}", store, tombstone_age=moment, delete_age=2 * moment)


def main() -> None:
    """Measure the stores asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("urls", nargs="*", help="stores that are empty; by default memory and a new SQLite file")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--states", type=int, default=100_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        for url in asked.urls or ["memory://", f"sqlite:///{Path(home, 'states.db')}"]:
            run(url, asked.jobs, asked.states)


if __name__ == "__main__":
    main()
