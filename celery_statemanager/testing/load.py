"""Load on one store from many threads and processes. The functions for processes can be imported by name."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, TypeVar

from celery_statemanager.records import JobRef, Verdict
from celery_statemanager.stores import open_store
from celery_statemanager.stores.base import Store
from celery_statemanager.testing.kit import FINISHED, Grid
from celery_statemanager.testing.model import Place

T = TypeVar("T")
PATIENCE = 90.0
"""Seconds after which a test under load fails."""


def in_threads(count: int, act: Callable[[int], T]) -> list[T]:
    """Call ``act`` with 0, 1, 2 …, each in its own thread, all starting together. Return the results."""
    gate = threading.Barrier(count)

    def start(number: int) -> T:
        gate.wait(PATIENCE)
        return act(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(start, range(count)))


def in_processes(start_method: str, act: Callable[..., T], *calls: tuple[Any, ...]) -> list[T]:
    """Call ``act`` with each tuple of arguments in a separate process, started by ``fork`` or ``spawn``."""
    context = multiprocessing.get_context(start_method)
    with ProcessPoolExecutor(len(calls), mp_context=context) as processes:
        results = [processes.submit(act, *args) for args in calls]
        return [result.result(PATIENCE) for result in results]


def write_cells(store: Store, ref: JobRef, places: Sequence[Place], times: int) -> list[tuple[Place, int]]:
    """Write every cell ``times`` times. Return the place and the version of each write."""
    grid = Grid(store, ref)
    return [(place, grid.write(*place, 1 + n % 90).cell.version) for n in range(times) for place in places]


def begin_cell(store: Store, ref: JobRef, place: Place) -> Verdict:
    """Request an attempt like one of many equal deliveries."""
    return Grid(store, ref).begin(*place, owner="w").verdict


def end_cells(store: Store, ref: JobRef, places: Sequence[Place]) -> list[str]:
    """Begin and finish cells. Return the latches that this decided."""
    grid = Grid(store, ref)
    fallen: list[str] = []
    for tag, row in places:
        grid.begin(tag, row)
        fallen += grid.write(tag, row, FINISHED, attempt=1, ends_attempt=True).decided
    return fallen


def write_cells_by_url(
    url: str, ref: JobRef, places: Sequence[Place], times: int, threads: int
) -> list[tuple[Place, int]]:
    """Run ``write_cells`` in several threads, in the process that calls this."""
    with open_store(url, timeout=PATIENCE) as store:
        parts = in_threads(threads, lambda _: write_cells(store, ref, places, times))
    return [done for part in parts for done in part]


def reopen_and_write(url: str, ref: JobRef, places: Sequence[Place], times: int) -> list[tuple[Place, int]]:
    """Run ``write_cells`` repeatedly, each time with a new store object."""
    done: list[tuple[Place, int]] = []
    for _ in range(times):
        done += write_cells_by_url(url, ref, places, 1, 1)
    return done


def begin_cells_by_url(url: str, ref: JobRef, places: Sequence[Place]) -> list[Verdict]:
    """Run ``begin_cell`` for some cells, in the process that calls this."""
    with open_store(url, timeout=PATIENCE) as store:
        return [begin_cell(store, ref, place) for place in places]


def end_cells_by_url(url: str, ref: JobRef, places: Sequence[Place]) -> list[str]:
    """Run ``end_cells`` in the process that calls this."""
    with open_store(url, timeout=PATIENCE) as store:
        return end_cells(store, ref, places)
