"""Rerun ten rows of a large job and of a small one, on Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.harness import Figure, Scale, in_turns, medians
from benchmarks.workers import load_app
from celery_statemanager import Status
from celery_statemanager.records import Write
from tests.servers import running_redis

SMALL, FAILED = 100, range(0, 100, 10)


def measure(scale: Scale) -> Iterator[Figure]:
    """Rerun the failed rows, named or not, after they have failed again. No worker runs."""
    large = scale(1_000, 10_000, 100_000)
    with running_redis() as server:
        module = load_app(server)
        calls = {
            (size, rows): _rerun(module, size, rows) for size in (SMALL, large) for rows in ("failed", "0,10,20-90")
        }
        seconds = medians(in_turns(calls, scale(2, 5, 30)))
    for rows, name in (("failed", 'rerun("failed")'), ("0,10,20-90", "rerun of named rows")):
        ours, peer = (seconds[size, rows] * 1_000 for size in (large, SMALL))
        yield Figure(f"{name}: 10 of {large:,} rows", f"10 of {SMALL} rows", ours, peer, "ms", 1.5)
        yield Figure(f"{name}: 10 of {large:,} rows", "100 ms", ours, None, "ms", 100, "alone")


def _rerun(module: Any, size: int, rows: str) -> Callable[[], float]:
    """Create a job in which all rows but ten have finished; return a function that fails and times those."""
    job = module.states.submit((module.tracked.s() for _ in range(size)), max_in_flight=1)
    store, ref = module.states.store, job.manager.ref
    for row in range(size):
        store.write(ref, Write.state("work", row, Status.FINISHED))

    def rerun() -> float:
        for row in FAILED:
            store.write(ref, Write.state("work", row, Status.FAILED))
        start = time.perf_counter()
        report = job.rerun(rows)
        seconds = time.perf_counter() - start
        assert len(report.rows) == len(FAILED)
        return seconds

    return rerun
