"""One sweep over many workers and open attempts, all of them alive: its time must grow no faster than their number."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from benchmarks.filling import TAG
from benchmarks.harness import Figure, Scale, in_turns, medians
from benchmarks.sizes import KINDS, opened
from celery_statemanager import Store, leases
from celery_statemanager.leases import Report
from celery_statemanager.stores.capabilities import Outbox
from celery_statemanager.sweep import Sweep, SweepReport
from celery_statemanager.testing import Grid
from tests.sweep_actions import RecordedActions

SMALL = 100
LEASE = 3_600.0
"""Seconds. Longer than the measurement, so that all workers stay alive."""


def measure(scale: Scale) -> Iterator[Figure]:
    """Compare a sweep over many workers with one over 100, for each worker."""
    large, rounds = scale(300, 2_000, 10_000), scale(2, 5, 9)
    for kind in KINDS:
        with opened(kind) as few, opened(kind) as many:
            measures = {"few": _sweeps(few, SMALL), "many": _sweeps(many, large)}
            seconds = medians(in_turns(measures, rounds))
        what = f"{kind} sweep over {large:,} workers"
        yield Figure(what, "-", seconds["many"], None, "s", 2.0, "alone")
        each = seconds["many"] / large * 1e6, seconds["few"] / SMALL * 1e6
        yield Figure(f"{what}, for each", f"over {SMALL}", *each, "µs", 1.2)


def _sweeps(store: Store, workers: int) -> Callable[[], float]:
    """Return a function that sweeps a store in which each worker runs one row, and returns the seconds."""
    assert isinstance(store, Outbox)
    grid = Grid.create(store, workers, (TAG,))
    for row in range(workers):
        grid.begin(TAG, row, owner=f"w{row}")
        leases.renew(store, f"w{row}", Report([leases.cell_name(grid.ref, TAG, row)]), LEASE)

    def sweep() -> float:
        start = time.perf_counter()
        report = Sweep(store, RecordedActions(store), lease=LEASE, max_lost=3).run()
        seconds = time.perf_counter() - start
        assert report == SweepReport(), report
        return seconds

    return sweep
