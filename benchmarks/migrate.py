"""What migrating costs: many small jobs, one of many states, one that is killed half-way and gone on with.

python -m benchmarks.migrate                                        a new SQLite file
python -m benchmarks.migrate redis://localhost:6379/0 --jobs 10000 --states 100000
FIRESTORE_EMULATOR_HOST=… python -m benchmarks.migrate firestore://bench --jobs 1000 --states 10000
                                                                    jobs as the Go module writes them

Each run is a process of its own; it tells its time, its calls to the store, and by how much its memory grew.
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

from benchmarks.collect import Counting
from benchmarks.filling import TAG, filled
from benchmarks.harness import peak_memory
from celery_statemanager import Store, migrate_jobs, open_store
from celery_statemanager.manager import new_job
from celery_statemanager.migrations import Steps
from celery_statemanager.migrations.runner import AT_ONCE

STEPS = Steps()
for number in (1, 2):
    STEPS.states(number)(lambda _, cell: replace(cell, event_id=cell.event_id or "none"))


class Mortal(Counting):
    """Is killed before it rewrites so many portions more."""

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
    """Migrate once, in this process; print what it took."""
    with open_store(url, timeout=60.0) as store:
        store.list_jobs(limit=1)
        mortal = Mortal(store, portions)
        before, began, peak = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter(), peak_memory()
        report = migrate_jobs(mortal, 2, job_id=job_id, steps=STEPS)
        took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    calls = ", ".join(f"{count} {method}" for method, count in mortal.calls.most_common(5))
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    grown = peak_memory() - peak
    print(
        f"{took:8.2f} s ({processor:.1f} of processor)  +{grown:.0f} MiB  {sum(mortal.calls.values())} calls ({calls})"
    )
    print(f"  {'':<34} longest call {mortal.longest[0] * 1000:.0f} ms ({mortal.longest[1]}); {report}", flush=True)


def measure(what: str, url: str, job_id: str | None = None, portions: int | None = None) -> None:
    """Migrate in a process of its own."""
    print(f"  {what:<34} ", end="", flush=True)
    asked = ["--run", f"--job={job_id or ''}", f"--portions={'' if portions is None else portions}"]
    began = time.perf_counter()
    ended = subprocess.run([sys.executable, "-m", "benchmarks.migrate", url, *asked], check=False).returncode
    if portions is not None:
        assert ended == -signal.SIGKILL
        print(f"killed after {time.perf_counter() - began:.2f} s, start of the process included", flush=True)


def fill(store: Store, url: str, job_id: str, states: int) -> None:
    """Make a job of this release or, in Firestore, of the Go module."""
    if url.startswith("firestore:"):
        go_documents(store, job_id, states)
    else:
        filled(store, states, job_id)


def go_documents(store: Any, job_id: str, states: int) -> None:
    """Write a job document by document, as the Go module does."""
    from celery_statemanager.stores.firestore import requests
    from celery_statemanager.stores.firestore.values import Moment

    root = f"{store._names.jobs}/{job_id}"
    job = {"numTasks": states, "deleted": False, "schemaVersion": 1}
    known = {"jobID": job_id, "tag": TAG, "message": "page 4", "timestamp": Moment(10**15), "version": 3}

    def documents() -> Iterator[Any]:
        yield requests.put(root, job, None)
        for row in range(states):
            own = {"taskID": row, "status": 40, "eventID": f"e{row}", "payload": {"rows": row}, "schemaVersion": 1}
            yield requests.put(f"{root}/states/{TAG}:{row}", {**known, **own}, None)

    store.now()  # the first call connects, and is made again until it does
    left = documents()
    while some := list(islice(left, 400)):
        store._database.commit(some, store._database.deadline())


def compare(url: str, jobs: int, states: int) -> None:
    """Measure one store, which must be empty."""
    print(url.partition("://")[0])
    with open_store(url, timeout=60.0) as store:
        if states:
            fill(store, url, "large", states)
            fill(store, url, "killed", states)
            measure(f"1 job of {states} states", url, "large")
            measure("the same, killed half-way", url, "killed", states // 2 // AT_ONCE)
            measure("and gone on with", url, "killed")
        for number in range(jobs):
            fill(store, url, new_job(f"job {number}", 1).job_id, 1)
    if jobs:
        measure(f"{jobs} jobs of 1 state", url)
        measure("nothing to do among them", url)


def main() -> None:
    """Measure the stores asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("urls", nargs="*", help="stores that are empty; by default a new SQLite file")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--states", type=int, default=100_000)
    for inner in ("--job", "--portions"):
        parser.add_argument(inner, default="", help=argparse.SUPPRESS)
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.run:
        migrate(asked.urls[0], asked.job or None, int(asked.portions) if asked.portions else None)
        return
    with tempfile.TemporaryDirectory() as home:
        for url in asked.urls or [f"sqlite:///{Path(home, 'states.db')}"]:
            compare(url, asked.jobs, asked.states)


if __name__ == "__main__":
    main()
