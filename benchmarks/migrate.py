"""Cost of migrations: many small jobs, one job of many states, and one that is killed half-way and resumed.

python -m benchmarks.migrate                                        a new SQLite file
python -m benchmarks.migrate redis://localhost:6379/0 --jobs 10000 --states 100000
FIRESTORE_EMULATOR_HOST=… python -m benchmarks.migrate firestore://bench --jobs 1000 --states 10000
                                                                    jobs in the format of the Go module

Each run is a new process. It prints its duration, its store calls and the growth of its memory.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.collect import CallCounter
from benchmarks.filling import TAG, create_filled_job
from benchmarks.harness import peak_memory
from celery_statemanager import Store, migrate_jobs, open_store
from celery_statemanager.migrations import Steps
from celery_statemanager.migrations.runner import AT_ONCE
from celery_statemanager.records import new_job

STEPS = Steps()
for number in (1, 2):
    STEPS.states(number)(lambda _, cell: replace(cell, event_id=cell.event_id or "none"))


class KillingStore(CallCounter):
    """Kill this process after ``portions`` rewrites, or never if it is None."""

    def __init__(self, inner: Store, portions: int | None) -> None:
        super().__init__(inner)
        self.portions = portions

    def calling(self, method: str, call: Callable[[], Any]) -> Any:
        if method == "rewrite_cells" and self.portions is not None:
            if self.portions == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.portions -= 1
        return super().calling(method, call)


def migrate(url: str, job_id: str | None, portions: int | None) -> None:
    """Migrate once in this process and print the cost."""
    with open_store(url, timeout=60.0) as store:
        store.list_jobs(limit=1)
        counter = KillingStore(store, portions)
        before, start, peak = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter(), peak_memory()
        report = migrate_jobs(counter, 2, job_id=job_id, steps=STEPS)
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    calls = ", ".join(f"{count} {method}" for method, count in counter.calls.most_common(5))
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    growth = peak_memory() - peak
    print(f"{seconds:8.2f} s ({cpu:.1f} s CPU)  +{growth:.0f} MiB  {sum(counter.calls.values())} calls ({calls})")
    print(f"  {'':<34} longest call {counter.longest[0] * 1000:.0f} ms ({counter.longest[1]}); {report}", flush=True)


def measure(what: str, url: str, job_id: str | None = None, portions: int | None = None) -> None:
    """Migrate in a new process."""
    print(f"  {what:<34} ", end="", flush=True)
    arguments = ["--run", f"--job={job_id or ''}", f"--portions={'' if portions is None else portions}"]
    start = time.perf_counter()
    code = subprocess.run([sys.executable, "-m", "benchmarks.migrate", url, *arguments], check=False).returncode
    if portions is not None:
        assert code == -signal.SIGKILL
        print(f"killed after {time.perf_counter() - start:.2f} s, including the start of the process", flush=True)


def fill(store: Store, url: str, job_id: str, states: int) -> None:
    """Create a job in the format of this release or, in Firestore, of the Go module."""
    if url.startswith("firestore:"):
        write_go_documents(store, job_id, states)
    else:
        create_filled_job(store, states, job_id)


def write_go_documents(store: Any, job_id: str, states: int) -> None:
    """Write a job document by document, as the Go module does."""
    from celery_statemanager.stores.firestore import requests
    from celery_statemanager.stores.firestore.values import Moment

    root = f"{store._names.jobs}/{job_id}"
    job = {"numTasks": states, "deleted": False, "schemaVersion": 1}
    common = {"jobID": job_id, "tag": TAG, "message": "page 4", "timestamp": Moment(10**15), "version": 3}

    def documents() -> Iterator[Any]:
        yield requests.put(root, job, None)
        for row in range(states):
            fields = {"taskID": row, "status": 40, "eventID": f"e{row}", "payload": {"rows": row}, "schemaVersion": 1}
            yield requests.put(f"{root}/states/{TAG}:{row}", {**common, **fields}, None)

    store.now()  # the first call connects and retries until it succeeds
    pending = documents()
    while batch := list(islice(pending, 400)):
        store._database.commit(batch, store._database.deadline())


def measure_store(url: str, jobs: int, states: int) -> None:
    """Measure one store, which must be empty."""
    print(url.partition("://")[0])
    with open_store(url, timeout=60.0) as store:
        if states:
            fill(store, url, "large", states)
            fill(store, url, "killed", states)
            measure(f"1 job of {states} states", url, "large")
            measure("the same, killed half-way", url, "killed", states // 2 // AT_ONCE)
            measure("the same, resumed", url, "killed")
        for number in range(jobs):
            fill(store, url, new_job(f"job {number}", 1).job_id, 1)
    if jobs:
        measure(f"{jobs} jobs of 1 state", url)
        measure("the same, already migrated", url)


def main() -> None:
    """Measure the stores named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("urls", nargs="*", help="URLs of empty stores (default: a new SQLite file)")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--states", type=int, default=100_000)
    for inner in ("--job", "--portions"):
        parser.add_argument(inner, default="", help=argparse.SUPPRESS)
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        migrate(options.urls[0], options.job or None, int(options.portions) if options.portions else None)
        return
    with tempfile.TemporaryDirectory() as home:
        for url in options.urls or [f"sqlite:///{Path(home, 'states.db')}"]:
            measure_store(url, options.jobs, options.states)


if __name__ == "__main__":
    main()
