"""Concurrent work on one store by many threads and processes. Functions for processes can be pickled by name."""

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
"""Seconds after which work under load has failed."""


def in_threads(count: int, act: Callable[[int], T]) -> list[T]:
    """Call ``act`` with 0, 1, 2 … in ``count`` threads that start at once. Return the results."""
    gate = threading.Barrier(count)

    def start(number: int) -> T:
        gate.wait(PATIENCE)
        return act(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(start, range(count)))


def in_processes(start_method: str, act: Callable[..., T], *calls: tuple[Any, ...]) -> list[T]:
    """Call ``act`` with each tuple of arguments in its own process, started by ``fork`` or ``spawn``."""
    context = multiprocessing.get_context(start_method)
    with ProcessPoolExecutor(len(calls), mp_context=context) as processes:
        results = [processes.submit(act, *args) for args in calls]
        return [result.result(PATIENCE) for result in results]


def write_cells(store: Store, ref: JobRef, places: Sequence[Place], times: int) -> list[tuple[Place, int]]:
    """Write every place ``times`` times. Return place and version of each write."""
    grid = Grid(store, ref)
    return [(place, grid.write(*place, 1 + n % 90).cell.version) for n in range(times) for place in places]


def begin_cell(store: Store, ref: JobRef, place: Place) -> Verdict:
    """Begin an attempt with a delivery that other callers use too. Return the verdict."""
    return Grid(store, ref).begin(*place, owner="w").verdict


def end_cells(store: Store, ref: JobRef, places: Sequence[Place]) -> list[str]:
    """Begin and finish cells. Return the latches that this decided."""
    grid = Grid(store, ref)
    decided: list[str] = []
    for tag, row in places:
        grid.begin(tag, row)
        decided += grid.write(tag, row, FINISHED, attempt=1, ends_attempt=True).decided
    return decided


def write_cells_by_url(
    url: str, ref: JobRef, places: Sequence[Place], times: int, threads: int
) -> list[tuple[Place, int]]:
    """Call ``write_cells`` in some threads of another process."""
    with open_store(url, timeout=PATIENCE) as store:
        parts = in_threads(threads, lambda _: write_cells(store, ref, places, times))
    return [done for part in parts for done in part]


def reopen_and_write(url: str, ref: JobRef, places: Sequence[Place], times: int) -> list[tuple[Place, int]]:
    """Call ``write_cells`` in another process with a new store object each time."""
    done: list[tuple[Place, int]] = []
    for _ in range(times):
        done += write_cells_by_url(url, ref, places, 1, 1)
    return done


def begin_cells_by_url(url: str, ref: JobRef, places: Sequence[Place]) -> list[Verdict]:
    """Call ``begin_cell`` for some cells in another process."""
    with open_store(url, timeout=PATIENCE) as store:
        return [begin_cell(store, ref, place) for place in places]


def end_cells_by_url(url: str, ref: JobRef, places: Sequence[Place]) -> list[str]:
    """Call ``end_cells`` in another process."""
    with open_store(url, timeout=PATIENCE) as store:
        return end_cells(store, ref, places)
