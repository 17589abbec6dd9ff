"""The newest jobs of many, and of few: the cost of a page must not grow with the number of jobs."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.harness import Figure, Scale, alternate
from benchmarks.sizes import KINDS, opened
from celery_statemanager import Store
from celery_statemanager.overview import Wanted, newest_page
from celery_statemanager.records import new_job

SMALL, PAGE = 100, 50


def measure(scale: Scale) -> Iterator[Figure]:
    """Compare the first page of a list for each store."""
    large = scale(300, 3_000, 100_000)
    for kind in KINDS:
        with opened(kind) as few, opened(kind) as many:
            _fill(few, SMALL)
            _fill(many, large)
            calls = {
                "few": lambda few=few: newest_page(few, Wanted(), PAGE),
                "many": lambda many=many: newest_page(many, Wanted(), PAGE),
            }
            seconds = alternate(calls, scale(5, 100, 300))
        ours, peer = seconds["many"] * 1e6, seconds["few"] * 1e6
        yield Figure(f"{kind} newest {PAGE} of {large:,} jobs", f"of {SMALL} jobs", ours, peer, "µs", 1.5)


def _fill(store: Store, jobs: int) -> None:
    for number in range(jobs):
        store.create_job(new_job(f"job {number}", 1_000, ("scan", "load")))
