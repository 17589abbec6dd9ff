"""Cost of garbage collection for many small jobs and for one job of many states: time, store calls and memory.

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
from celery_statemanager.records import Write, new_event_id, new_job
from celery_statemanager.stores.wrapped import WrappedStore

T = TypeVar("T")


class CallCounter(WrappedStore):
    """Count the calls to a store and record the longest, because other clients may have to wait for it."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.calls: Counter[str] = Counter()
        self.longest = (0.0, "")

    def calling(self, method: str, call: Callable[[], T]) -> T:
        self.calls[method] += 1
        start = time.perf_counter()
        try:
            return call()
        finally:
            self.longest = max(self.longest, (time.perf_counter() - start, method))


def fill(store: Store, jobs: int, states: int) -> None:
    """Create jobs with ``states`` states each, one per row."""
    for number in range(jobs):
        ref = store.create_job(new_job(f"job {number}", max(states, 1), ("a",))).ref
        for row in range(states):
            store.write(ref, Write(tag="a", task_index=row, status=40, event_id=new_event_id(), message="page 4"))
    pause, newest = threading.Event(), store.now()
    while store.now() <= newest + 10_000:
        pause.wait(0.01)


def measure(what: str, store: Store, **ages: Any) -> None:
    """Collect garbage once and print the cost."""
    counter = CallCounter(store)
    before, start = peak_memory(), time.perf_counter()
    report: GarbageReport = collect_garbage(counter, **ages)
    seconds = time.perf_counter() - start
    growth = peak_memory() - before
    calls = ", ".join(f"{count} {method}" for method, count in counter.calls.most_common(5))
    print(f"  {what:<28} {seconds:8.2f} s  +{growth:.0f} MiB  {sum(counter.calls.values())} calls ({calls})")
    print(f"  {'':<28} longest call {counter.longest[0] * 1000:.0f} ms ({counter.longest[1]}); {report}")


def run(url: str, jobs: int, states: int) -> None:
    """Measure one store, which must be empty."""
    hour, millisecond = 3600.0, 0.001
    with open_store(url, timeout=60.0) as store:
        print(url.partition("://")[0])
        if jobs:
            fill(store, jobs, 1)
            measure(f"nothing idle, {jobs} jobs", store, tombstone_age=hour, delete_age=2 * hour)
            measure(f"tombstone {jobs} jobs", store, tombstone_age=millisecond, delete_age=hour)
            measure(f"delete {jobs} jobs", store, tombstone_age=millisecond, delete_age=2 * millisecond)
        if states:
            fill(store, 1, states)
            measure(f"delete 1 job of {states}", store, tombstone_age=millisecond, delete_age=2 * millisecond)


def main() -> None:
    """Measure the stores named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("urls", nargs="*", help="URLs of empty stores (default: memory and a new SQLite file)")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--states", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        for url in options.urls or ["memory://", f"sqlite:///{Path(home, 'states.db')}"]:
            run(url, options.jobs, options.states)


if __name__ == "__main__":
    main()
