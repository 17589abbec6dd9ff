"""Barriers from the inside: what they ask, when they warn, what they leave behind (rule R8)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from celery_statemanager import (
    JobNotFound,
    Manager,
    StoreUnavailable,
    SynchronizeFailed,
    SynchronizeTimeout,
    barrier,
    open_store,
)
from celery_statemanager.models import Scope, State
from celery_statemanager.records import JobRef
from celery_statemanager.stores.base import Store, Watch
from celery_statemanager.testing import FaultyStore, Grid, WrappedStore
from celery_statemanager.testing.kit import FAILED, FINISHED

DEADLINE = 20.0


class Counting(WrappedStore):
    """Remembers its watches, and tells of each."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.watches: list[Watch] = []
        self.watched = threading.Event()

    def watch(self, ref: JobRef, scope: Scope) -> Watch:
        self.watches.append(super().watch(ref, scope))
        self.watched.set()
        return self.watches[-1]


@pytest.fixture
def store() -> Counting:
    return Counting(open_store("memory://"))


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(barrier, "before_waiting", [lambda: found.append("warned")])
    return found


def is_closed(watch: Watch) -> bool:
    """Whether it no longer waits for changes."""
    reader = threading.Thread(target=lambda: watch.read(600), daemon=True)
    reader.start()
    reader.join(DEADLINE)
    return not reader.is_alive()


@pytest.fixture
def in_background() -> Iterator[list[threading.Thread]]:
    threads: list[threading.Thread] = []
    yield threads
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()


def test_a_barrier_that_is_reached_already_does_not_warn(store: Counting, warned: list[str]) -> None:
    grid = Grid.create(store, 2)
    for row in (0, 1):
        grid.write("a", row, 10)
    assert len(barrier.synchronize(store, grid.ref, "a", 10)) == 2
    assert warned == []
    assert is_closed(store.watches[0])


def test_a_barrier_that_waits_warns_before(store: Counting, warned: list[str]) -> None:
    grid = Grid.create(store, 2)
    with pytest.raises(SynchronizeTimeout):
        barrier.synchronize(store, grid.ref, "a", 10, timeout=0.01)
    assert warned == ["warned"]
    assert is_closed(store.watches[0])


def test_a_barrier_without_time_only_looks(store: Counting) -> None:
    grid = Grid.create(store, 2)
    with pytest.raises(SynchronizeTimeout) as late:
        barrier.synchronize(store, grid.ref, "a", 10, timeout=0)
    assert [state.status for state in late.value.states] == [0, 0]
    assert late.value.missing == "0-1"
    for row in (0, 1):
        grid.write("a", row, 10)
    assert len(barrier.synchronize(store, grid.ref, "a", 10, timeout=0)) == 2


def test_a_barrier_watches_before_it_looks(store: Counting, in_background: list[threading.Thread]) -> None:
    grid = Grid.create(store, 1)

    def write() -> None:
        assert store.watched.wait(DEADLINE)
        grid.write("a", 0, 10)

    in_background.append(threading.Thread(target=write))
    in_background[0].start()
    assert barrier.synchronize(store, grid.ref, "a", 10, timeout=DEADLINE)[0].status == 10


def test_failing_fast_names_the_lowest_row_and_waiting_on_does_not_fail(store: Counting) -> None:
    grid = Grid.create(store, 3)
    for row, status in ((0, -2), (1, -42), (2, FINISHED)):
        grid.write("a", row, status)
    with pytest.raises(SynchronizeFailed) as failed:
        barrier.synchronize(store, grid.ref, "a", 10, timeout=DEADLINE)
    assert (failed.value.state.task_index, failed.value.state.status) == (1, -42)
    with pytest.raises(SynchronizeTimeout) as late:
        barrier.synchronize(store, grid.ref, "a", 10, timeout=0.01, fail_fast=False)
    assert late.value.missing == "0-1"
    assert [state.status for state in late.value.states] == [-2, -42, FINISHED]


class Restless(WrappedStore):
    """Every look at the lowest cell is followed by the next of some writes."""

    def __init__(self, inner: Store, *writes: tuple[int, int]) -> None:
        super().__init__(inner)
        self.writes = list(writes)
        self.looks = 0

    def lowest(self, ref: JobRef, scope: Scope) -> State:
        self.looks += 1
        found = super().lowest(ref, scope)
        if self.writes:
            Grid(self, ref).write("a", *self.writes.pop(0))
        return found


@pytest.mark.parametrize(
    ("writes", "looks"),
    [([(1, 10), (2, 10)], 1), ([(0, 5), (0, 6)], 1), ([(0, 10), (2, 10)], 2)],
)
def test_a_barrier_looks_no_more_until_the_row_that_held_it_up_has_come_far_enough(
    store: Counting, writes: list[tuple[int, int]], looks: int
) -> None:
    for timeout in (0.2, DEADLINE):  # more time where a busy machine gave it none for the looks that must be
        restless = Restless(store, *writes)
        grid = Grid.create(restless, 3, job_id=f"job {timeout}")
        with pytest.raises(SynchronizeTimeout):
            barrier.synchronize(restless, grid.ref, "a", 10, timeout=timeout)
        if restless.looks >= looks:
            break
    assert restless.looks == looks


def test_a_barrier_looks_again_each_time_that_the_row_that_held_it_up_has(store: Counting) -> None:
    restless = Restless(store, (0, 10), (1, 10), (2, 10))
    grid = Grid.create(restless, 3)
    assert len(barrier.synchronize(restless, grid.ref, "a", 10, timeout=DEADLINE)) == 3
    assert restless.looks == 4


def test_a_barrier_for_an_error_code_is_reached_by_it(store: Counting) -> None:
    grid = Grid.create(store, 2)
    grid.write("a", 0, FAILED)
    assert [state.status for state in barrier.synchronize(store, grid.ref, "a", FAILED)] == [FAILED, 0]


def test_a_barrier_of_a_deleted_job_finds_none(store: Counting) -> None:
    grid = Grid.create(store, 2)
    grid.delete()
    with pytest.raises(JobNotFound):
        barrier.synchronize(store, grid.ref, "a", 10)
    with pytest.raises(JobNotFound):
        barrier.wait_settled(store, grid.ref)


@pytest.mark.parametrize(
    ("method", "looks", "wait"),
    [
        ("lowest", 1, lambda store, ref: barrier.synchronize(store, ref, "a", FINISHED, timeout=DEADLINE)),
        ("column_summaries", 2, lambda store, ref: barrier.wait_settled(store, ref, timeout=DEADLINE)),
    ],
    ids=["synchronize", "wait"],
)
def test_a_store_that_fails_while_it_is_waited_for_is_asked_again(
    store: Counting, in_background: list[threading.Thread], method: str, looks: int, wait: Callable
) -> None:
    grid, faulty = Grid.create(store, 1, ("a",)), FaultyStore(store)
    looked, failed = threading.Semaphore(0), threading.Event()

    def fail(_: object) -> None:
        failed.set()
        raise StoreUnavailable("away for a moment")

    def end_the_row() -> None:
        for _ in range(looks):
            assert looked.acquire(timeout=DEADLINE)
        grid.run("a", 0)

    faulty.at(method, lambda _: looked.release(), after=True, times=looks)
    faulty.at(method, fail)
    in_background.append(threading.Thread(target=end_the_row))
    in_background[0].start()
    assert wait(faulty, grid.ref)
    assert failed.is_set()


@pytest.mark.parametrize(
    ("tag", "status", "kind"), [("", 1, ValueError), ("a", True, TypeError), ("a", 2**31, ValueError)]
)
def test_a_barrier_is_checked_before_anything_is_asked(store: Counting, tag: str, status: int, kind: type) -> None:
    manager = Manager.create(store, "job", num_tasks=1)
    with pytest.raises(kind):
        manager.synchronize(tag, status, timeout=0)
    assert store.watches == []


@pytest.mark.parametrize("tags", [("a",), None], ids=["planned", "planless"])
def test_waiting_for_a_job_to_settle_ends_with_its_last_cell(
    store: Counting, tags: tuple[str, ...] | None, in_background: list[threading.Thread]
) -> None:
    grid = Grid.create(store, 2, tags)
    grid.run("a", 0)
    assert barrier.wait_settled(store, grid.ref, timeout=0.01) is False
    in_background.append(threading.Thread(target=lambda: grid.run("a", 1, FAILED)))
    in_background[0].start()
    assert barrier.wait_settled(store, grid.ref, timeout=DEADLINE) is True
    assert barrier.wait_settled(store, grid.ref, timeout=0) is True
    assert all(is_closed(watch) for watch in store.watches)
