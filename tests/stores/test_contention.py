"""A change of a job record that loses a race pauses, retries and ends, on every store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from celery_statemanager import JobNotFound, Store, StoreContended
from celery_statemanager.completion import cancel, publish_due
from celery_statemanager.records import JobRecord
from celery_statemanager.retention import change_job, tombstone_job
from celery_statemanager.stores.wrapped import WrappedStore
from celery_statemanager.testing.kit import FAILED, Grid

TIMEOUT = 0.4
MOST_TRIES = 12
"""Tries that fit into ``TIMEOUT`` with pauses of 5, 10, 20 ms and so on, halved at most by jitter."""


class ContendedStore(WrappedStore):
    """A store in which another writer changes a job just before each of so many changes."""

    def __init__(self, inner: Store, rivals: float) -> None:
        super().__init__(inner)
        self.rivals = rivals
        self.tries = 0

    def update_job(self, job: JobRecord) -> tuple[str, ...] | None:
        self.tries += 1
        if self.tries <= self.rivals:
            assert self.inner.update_job(self.inner.get_job(job.key)) is not None
        return super().update_job(job)


def tombstone(grid: Grid) -> bool:
    return tombstone_job(grid.store, grid.ref, timeout=TIMEOUT)


def cancel_it(grid: Grid) -> bool:
    return cancel(grid.store, grid.ref, "enough", timeout=TIMEOUT)


def publish(grid: Grid) -> int:
    return publish_due(grid.store, grid.ref, ["failure"], lambda *_: True, timeout=TIMEOUT)


CHANGES = [tombstone, cancel_it, publish]


@pytest.fixture
def grid(store: Store) -> Grid:
    grid = Grid.create(store, 2, ("a",), failure="call")
    grid.run("a", 0, FAILED)
    return grid


@pytest.mark.timeout(30)
@pytest.mark.parametrize("change", CHANGES, ids=lambda each: each.__name__)
def test_a_change_that_always_loses_the_race_ends(grid: Grid, change: Callable[[Grid], object]) -> None:
    contended = ContendedStore(grid.store, float("inf"))
    with pytest.raises(StoreContended, match=r"job 'job' .*gave up after 0\.4 s"):
        change(grid.seen_by(contended))
    assert 1 < contended.tries <= MOST_TRIES


@pytest.mark.parametrize("change", CHANGES, ids=lambda each: each.__name__)
def test_a_change_that_loses_the_race_twice_is_made(grid: Grid, change: Callable[[Grid], object]) -> None:
    contended = ContendedStore(grid.store, 2)
    assert change(grid.seen_by(contended))
    assert contended.tries == 3


def test_each_try_of_a_change_reads_the_job_again(grid: Grid) -> None:
    contended, seen = ContendedStore(grid.store, 2), []

    def hide(job: JobRecord) -> JobRecord:
        seen.append(job.revision)
        return replace(job, tombstoned_at=7)

    first = grid.job.revision
    assert change_job(contended, grid.ref, hide, timeout=30) == ()
    assert seen == [first, first + 1, first + 2]
    assert grid.job.tombstoned_at == 7


def test_an_empty_change_writes_nothing(grid: Grid) -> None:
    contended = ContendedStore(grid.store, 0)
    assert change_job(contended, grid.ref, lambda job: None) is None
    assert contended.tries == 0


def test_a_job_that_is_replaced_between_two_tries_is_not_changed(grid: Grid) -> None:
    def replaced(job: JobRecord) -> JobRecord:
        grid.delete()
        Grid.create(grid.store, 2, ("a",))
        return replace(job, tombstoned_at=7)

    with pytest.raises(JobNotFound):
        change_job(grid.store, grid.ref, replaced)
    assert grid.job.tombstoned_at is None
