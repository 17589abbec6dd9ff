"""Barriers: their reads of the store, their warnings and the watches that they close (rule R8)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


class WatchRecorder(WrappedStore):
    """Record watches and signal each new one."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.watches: list[Watch] = []
        self.watched = threading.Event()

    def watch(self, ref: JobRef, scope: Scope, since: str | None = None) -> Watch:
        self.watches.append(super().watch(ref, scope, since))
        self.watched.set()
        return self.watches[-1]


@pytest.fixture
def store() -> WatchRecorder:
    return WatchRecorder(open_store("memory://"))


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    warnings: list[str] = []

    @contextmanager
    def around() -> Iterator[None]:
        warnings.append("warned")
        yield
        warnings.append("left")

    monkeypatch.setattr(barrier, "around_waiting", [around])
    return warnings


def is_closed(watch: Watch) -> bool:
    """Return whether reading the watch returns without waiting for changes."""
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


def test_a_barrier_that_is_already_reached_does_not_warn(store: WatchRecorder, warnings: list[str]) -> None:
    grid = Grid.create(store, 2)
    for row in (0, 1):
        grid.write("a", row, 10)
    assert len(barrier.synchronize(store, grid.ref, "a", 10)) == 2
    assert warnings == []
    assert is_closed(store.watches[0])


def test_a_barrier_warns_before_it_waits(store: WatchRecorder, warnings: list[str]) -> None:
    grid = Grid.create(store, 2)
    with pytest.raises(SynchronizeTimeout):
        barrier.synchronize(store, grid.ref, "a", 10, timeout=0.01)
    assert warnings == ["warned", "left"]
    assert is_closed(store.watches[0])


def test_a_barrier_with_timeout_zero_reads_without_waiting(store: WatchRecorder) -> None:
    grid = Grid.create(store, 2)
    with pytest.raises(SynchronizeTimeout) as raised:
        barrier.synchronize(store, grid.ref, "a", 10, timeout=0)
    assert [state.status for state in raised.value.states] == [0, 0]
    assert raised.value.missing == "0-1"
    for row in (0, 1):
        grid.write("a", row, 10)
    assert len(barrier.synchronize(store, grid.ref, "a", 10, timeout=0)) == 2


def test_a_barrier_starts_watching_before_it_reads(store: WatchRecorder, in_background: list[threading.Thread]) -> None:
    grid = Grid.create(store, 1)

    def write() -> None:
        assert store.watched.wait(DEADLINE)
        grid.write("a", 0, 10)

    in_background.append(threading.Thread(target=write))
    in_background[0].start()
    assert barrier.synchronize(store, grid.ref, "a", 10, timeout=DEADLINE)[0].status == 10


def test_a_failed_row_raises_at_once_unless_fail_fast_is_false(store: WatchRecorder) -> None:
    grid = Grid.create(store, 3)
    for row, status in ((0, -2), (1, -42), (2, FINISHED)):
        grid.write("a", row, status)
    with pytest.raises(SynchronizeFailed) as failed:
        barrier.synchronize(store, grid.ref, "a", 10, timeout=DEADLINE)
    assert (failed.value.state.task_index, failed.value.state.status) == (1, -42)
    with pytest.raises(SynchronizeTimeout) as timed_out:
        barrier.synchronize(store, grid.ref, "a", 10, timeout=0.01, fail_fast=False)
    assert timed_out.value.missing == "0-1"
    assert [state.status for state in timed_out.value.states] == [-2, -42, FINISHED]


class WriteAfterRead(WrappedStore):
    """Perform the next of some writes after each read of the lowest cell, and count the reads."""

    def __init__(self, inner: Store, *writes: tuple[int, int]) -> None:
        super().__init__(inner)
        self.writes = list(writes)
        self.reads = 0

    def lowest(self, ref: JobRef, scope: Scope) -> State:
        self.reads += 1
        state = super().lowest(ref, scope)
        if self.writes:
            Grid(self, ref).write("a", *self.writes.pop(0))
        return state


@pytest.mark.parametrize(
    ("writes", "reads"),
    [([(1, 10), (2, 10)], 1), ([(0, 5), (0, 6)], 1), ([(0, 10), (2, 10)], 2)],
)
def test_a_barrier_reads_again_only_after_the_lowest_row_reached_the_status(
    store: WatchRecorder, writes: list[tuple[int, int]], reads: int
) -> None:
    for timeout in (0.2, DEADLINE):  # the short timeout may end before the expected reads
        writing = WriteAfterRead(store, *writes)
        grid = Grid.create(writing, 3, job_id=f"job {timeout}")
        with pytest.raises(SynchronizeTimeout):
            barrier.synchronize(writing, grid.ref, "a", 10, timeout=timeout)
        if writing.reads >= reads:
            break
    assert writing.reads == reads


def test_a_barrier_reads_again_each_time_the_lowest_row_reaches_the_status(store: WatchRecorder) -> None:
    writing = WriteAfterRead(store, (0, 10), (1, 10), (2, 10))
    grid = Grid.create(writing, 3)
    assert len(barrier.synchronize(writing, grid.ref, "a", 10, timeout=DEADLINE)) == 3
    assert writing.reads == 4


def test_a_barrier_for_an_error_code_is_reached_by_that_code(store: WatchRecorder) -> None:
    grid = Grid.create(store, 2)
    grid.write("a", 0, FAILED)
    assert [state.status for state in barrier.synchronize(store, grid.ref, "a", FAILED)] == [FAILED, 0]


def test_a_barrier_of_a_deleted_job_raises_job_not_found(store: WatchRecorder) -> None:
    grid = Grid.create(store, 2)
    grid.delete()
    with pytest.raises(JobNotFound):
        barrier.synchronize(store, grid.ref, "a", 10)
    with pytest.raises(JobNotFound):
        barrier.wait_settled(store, grid.ref)


@pytest.mark.parametrize(
    ("method", "reads", "wait"),
    [
        ("lowest", 1, lambda store, ref: barrier.synchronize(store, ref, "a", FINISHED, timeout=DEADLINE)),
        ("column_summaries", 1, lambda store, ref: barrier.wait_settled(store, ref, timeout=DEADLINE)),
    ],
    ids=["synchronize", "wait"],
)
def test_a_wait_reads_again_after_the_store_failed(
    store: WatchRecorder, in_background: list[threading.Thread], method: str, reads: int, wait: Callable
) -> None:
    grid, faulty = Grid.create(store, 1, ("a",)), FaultyStore(store)
    read, failed = threading.Semaphore(0), threading.Event()

    def fail(_: object) -> None:
        failed.set()
        raise StoreUnavailable("away for a moment")

    def end_the_row() -> None:
        for _ in range(reads):
            assert read.acquire(timeout=DEADLINE)
        grid.run("a", 0)

    faulty.at(method, lambda _: read.release(), after=True, times=reads)
    faulty.at(method, fail)
    in_background.append(threading.Thread(target=end_the_row))
    in_background[0].start()
    assert wait(faulty, grid.ref)
    assert failed.is_set()


@pytest.mark.parametrize(
    ("tag", "status", "kind"), [("", 1, ValueError), ("a", True, TypeError), ("a", 2**31, ValueError)]
)
def test_synchronize_checks_its_arguments_before_it_accesses_the_store(
    store: WatchRecorder, tag: str, status: int, kind: type
) -> None:
    manager = Manager.create(store, "job", num_tasks=1)
    with pytest.raises(kind):
        manager.synchronize(tag, status, timeout=0)
    assert store.watches == []


@pytest.mark.parametrize("tags", [("a",), None], ids=["planned", "planless"])
def test_wait_settled_returns_once_the_last_cell_is_final(
    store: WatchRecorder, tags: tuple[str, ...] | None, in_background: list[threading.Thread]
) -> None:
    grid = Grid.create(store, 2, tags)
    grid.run("a", 0)
    assert barrier.wait_settled(store, grid.ref, timeout=0.01) is False
    in_background.append(threading.Thread(target=lambda: grid.run("a", 1, FAILED)))
    in_background[0].start()
    assert barrier.wait_settled(store, grid.ref, timeout=DEADLINE) is True
    assert barrier.wait_settled(store, grid.ref, timeout=0) is True
    assert all(is_closed(watch) for watch in store.watches)
