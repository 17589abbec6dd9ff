"""Asynchronous subscriptions on every store: one watch for all of a job, and nothing left behind (rule R24)."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from celery_statemanager import JobNotFound, StateEvent, Store, StoreUnavailable
from celery_statemanager.asynchronous import AsyncSubscription, exhaust
from celery_statemanager.awaiting import wait_settled
from celery_statemanager.hub import hubs
from celery_statemanager.models import Scope
from celery_statemanager.records import JobRef
from celery_statemanager.stores.base import Watch
from celery_statemanager.testing import FaultyStore, Grid, WrappedStore
from celery_statemanager.testing.kit import FAILED, PATIENCE

Cell = tuple[str, int]
LONGEST_BLOCK = 0.020


class CountedStore(WrappedStore):
    """Counts the watches that are open."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.created = 0
        self.open: set[Watch] = set()

    def watch(self, ref: JobRef, scope: Scope, since: str | None = None) -> Watch:
        watch = super().watch(ref, scope, since)
        self.created += 1
        self.open.add(watch)
        close = watch.close

        def closed() -> None:
            self.open.discard(watch)
            close()

        watch.close = closed  # type: ignore[method-assign]
        return watch


@pytest.fixture
def counted(store: Store) -> CountedStore:
    return CountedStore(store)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Check that no thread of a hub outlives its subscribers."""
    yield
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "statemanager-hub":
            thread.join(PATIENCE)
            assert not thread.is_alive()


def run(body: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(body, 3 * PATIENCE))


async def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "still false"
        await asyncio.sleep(0.005)


async def read_until(events: AsyncSubscription, newest: dict[Cell, int], expected: dict[Cell, int]) -> None:
    """Read until the newest version of each cell is as expected, and check that versions rise."""
    while newest != expected:
        event = await asyncio.wait_for(events.__anext__(), PATIENCE)
        cell = event.state.tag, event.state.task_index
        assert newest.get(cell, 0) < event.state.version
        newest[cell] = event.state.version


def versions(grid: Grid) -> dict[Cell, int]:
    return {(state.tag, state.task_index): state.version for state in grid.states()}


@asynccontextmanager
async def heartbeat() -> AsyncIterator[list[float]]:
    """Measure by how much the loop delays a task, in seconds of processor time: the machine may be busy."""
    delays: list[float] = []

    async def beat() -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            delays.append(time.thread_time() - before)

    task = asyncio.create_task(beat())
    yield delays
    task.cancel()


def test_subscribers_of_one_job_share_one_watch(counted: CountedStore) -> None:
    grid = Grid.create(counted, 3)
    grid.write("a", 0, 5)

    async def body() -> None:
        async with grid.manager().asubscribe() as first, grid.manager().asubscribe() as second:
            seen: list[dict[Cell, int]] = [{}, {}]
            for events, newest in zip((first, second), seen):
                await read_until(events, newest, versions(grid))
            grid.write("a", 1, 5)
            grid.write("a", 0, 6)
            for events, newest in zip((first, second), seen):
                await read_until(events, newest, versions(grid))
            assert len(counted.open) == 1
        assert first.closed
        await until(lambda: not counted.open, 1.0)

    run(body())
    assert counted.created == 1


def test_a_late_subscriber_gets_a_replay_of_what_the_hub_has(store: Store) -> None:
    grid = Grid.create(store, 3)
    for row in (2, 0):
        grid.write("a", row, 5)

    async def body() -> None:
        async with grid.manager().asubscribe() as first:
            newest: dict[Cell, int] = {}
            await read_until(first, newest, versions(grid))
            grid.write("a", 1, 5)
            grid.write("a", 2, 6)
            await read_until(first, newest, versions(grid))
            async with grid.manager().asubscribe("a") as late:
                got = [await late.__anext__() for _ in range(3)]
                assert [(event.state.task_index, event.replay) for event in got] == [(0, True), (1, True), (2, True)]
                grid.write("b", 0, 5)
                grid.write("a", 0, 6)
                event = await late.__anext__()
                assert (event.state.tag, event.state.task_index, event.replay) == ("a", 0, False)

    run(body())


def test_an_asynchronous_subscription_continues_at_any_cursor(counted: CountedStore) -> None:
    grid = Grid.create(counted, 4)
    for row in range(4):
        grid.write("a", row, 5)
    with grid.manager().subscribe() as before:
        cursors = [event.cursor for event in (before.get(PATIENCE) for _ in range(4)) if event]
        grid.write("a", 1, 6)
        event = before.get(PATIENCE)
        assert event is not None
        cursors.append(event.cursor)
    grid.write("a", 2, 6)
    grid.write("b", 3, 6)

    async def body() -> None:
        for number, cursor in enumerate(cursors):
            async with grid.manager().asubscribe(since=cursor) as events:
                expected = {("a", 2): 2, ("b", 3): 1}
                expected |= {("a", 1): 2} if number < 4 else {}
                expected |= {("a", 3): 1} if number < 3 else {}
                newest: dict[Cell, int] = {}
                await read_until(events, newest, expected)
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(events.__anext__(), 0.05)
        async with grid.manager().asubscribe(since=cursors[-1]) as events:
            newest = {}
            await read_until(events, newest, {("a", 2): 2, ("b", 3): 1})
            grid.write("a", 3, 7)
            event = await events.__anext__()
            assert (event.state.task_index, event.replay) == (3, False)
            with await asyncio.to_thread(grid.manager().subscribe, since=event.cursor) as again:
                assert again.get(0.0) is None
        with pytest.raises(ValueError, match="since must be the cursor"):
            grid.manager().asubscribe(since="nonsense")

    run(body())


def test_a_cursor_of_another_job_causes_a_resync(store: Store) -> None:
    grid, other = Grid.create(store, 2), Grid.create(store, 2, job_id="other")
    other.write("a", 0, 5)
    with other.manager().subscribe() as events:
        event = events.get(PATIENCE)
        assert event is not None
    for row in (1, 0):
        grid.write("a", row, 5)

    async def body() -> None:
        async with grid.manager().asubscribe(since=event.cursor) as events:
            got = [await events.__anext__() for _ in range(3)]
        assert [(each.resync, each.replay) for each in got] == [(True, True), (False, True), (False, True)]
        assert [each.state.task_index for each in got[1:]] == [1, 0]

    run(body())


@pytest.mark.parametrize("tags", [("a", "b"), None], ids=["planned", "planless"])
def test_until_settled_ends_after_the_last_version_of_every_cell(store: Store, tags: tuple[str, ...] | None) -> None:
    grid = Grid.create(store, 2, tags)
    grid.write("a", 0, 5)

    async def read() -> dict[Cell, int]:
        newest = {}
        async for event in grid.manager().asubscribe(until_settled=True):
            newest[event.state.tag, event.state.task_index] = event.state.version
        return newest

    async def body() -> None:
        async with grid.manager().asubscribe() as other:
            await other.__anext__()
            readers = [asyncio.create_task(read()) for _ in range(3)]
            for tag, row in (("b", 0), ("a", 1), ("b", 1)):
                await asyncio.to_thread(grid.run, tag, row)
            await asyncio.to_thread(grid.run, "a", 0, FAILED)
            for newest in await asyncio.gather(*readers):
                assert newest == versions(grid)
            assert await read() == versions(grid)
            assert not other.closed

    run(body())


def test_waiting_for_a_job_reads_no_cells(counted: CountedStore) -> None:
    grid = Grid.create(counted, 2, ("a",))
    grid.run("a", 0)

    async def body() -> None:
        job = grid.job
        assert not await wait_settled(counted, job, 0.05)
        waiting = [asyncio.create_task(wait_settled(counted, job, PATIENCE)) for _ in range(50)]
        await until(lambda: len(counted.open) == 1)
        await asyncio.to_thread(grid.write, "a", 1, 5)
        await asyncio.to_thread(grid.run, "a", 1)
        assert all(await asyncio.gather(*waiting))
        assert await wait_settled(counted, job, 0.0)
        await until(lambda: not counted.open, 1.0)

    run(body())


def test_deleting_the_job_ends_all_subscribers(store: Store) -> None:
    grid = Grid.create(store, 2)
    grid.write("a", 0, 5)

    async def body() -> None:
        subscribers = [grid.manager().asubscribe() for _ in range(3)]
        for events in subscribers:
            await events.__anext__()
        reading = [asyncio.create_task(exhaust(events)) for events in subscribers]
        await asyncio.to_thread(grid.delete)
        await asyncio.gather(*reading)
        assert all(events.closed for events in subscribers)

    run(body())
    with pytest.raises(JobNotFound):
        run(exhaust(AsyncSubscription(store, grid.ref, Scope())))


@pytest.mark.parametrize("way", ["break", "cancel", "aclose"])
def test_a_subscriber_that_stops_is_removed_within_a_second(counted: CountedStore, way: str) -> None:
    grid = Grid.create(counted, 2)
    grid.write("a", 0, 5)
    started = asyncio.Event()

    async def read() -> None:
        async for _ in grid.manager().asubscribe():
            started.set()
            if way == "break":
                break

    async def body() -> None:
        if way == "aclose":
            events = grid.manager().asubscribe()
            await events.__anext__()
            started.set()
            await events.aclose()
        else:
            task = asyncio.create_task(read())
            await started.wait()
            if way == "cancel":
                task.cancel()
            await asyncio.wait([task])
            del task
        await until(lambda: not counted.open, 1.0)
        await until(lambda: "statemanager-hub" not in {each.name for each in threading.enumerate()}, 1.0)

    run(body())


def test_a_cancelled_read_loses_no_event(store: Store) -> None:
    grid = Grid.create(store, 2)

    async def body() -> None:
        async with grid.manager().asubscribe() as events:
            for row in range(2):
                for _ in range(3):
                    with pytest.raises(asyncio.TimeoutError):
                        await asyncio.wait_for(events.__anext__(), 0.01)
                grid.write("a", row, 5)
                assert (await events.__anext__()).state.task_index == row

    run(body())


def test_subscribers_survive_an_outage(store: Store) -> None:
    faulty = FaultyStore(store)
    grid = Grid.create(faulty, 3)
    grid.write("a", 0, 5)

    async def body() -> None:
        async with grid.manager().asubscribe() as events:
            newest: dict[Cell, int] = {}
            await read_until(events, newest, versions(grid))
            with faulty.away():
                for row in (0, 1):
                    Grid(store, grid.ref).write("a", row, 6)
            await read_until(events, newest, versions(grid))

    run(body())


def test_an_unavailable_store_raises_at_the_start(store: Store) -> None:
    faulty = FaultyStore(store)
    grid = Grid.create(faulty, 3)
    manager = grid.manager()
    with faulty.away(), pytest.raises(StoreUnavailable):
        run(exhaust(manager.asubscribe()))


def test_subscribers_in_two_event_loops_share_one_watch(counted: CountedStore) -> None:
    grid = Grid.create(counted, 2)
    grid.write("a", 0, 5)
    both = threading.Barrier(2, timeout=PATIENCE)

    async def read() -> None:
        async with grid.manager().asubscribe() as events:
            await events.__anext__()
            await asyncio.to_thread(both.wait)
            assert len(counted.open) == 1
            if both.n_waiting == 0 and threading.current_thread() is threads[0]:
                grid.write("a", 1, 5)
            assert (await events.__anext__()).state.task_index == 1
            await asyncio.to_thread(both.wait)

    failed: list[BaseException] = []

    def reading() -> None:
        try:
            run(read())
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=reading) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
    assert not failed
    assert not counted.open


def test_a_thousand_subscribers_cost_one_watch_and_no_thread_each(counted: CountedStore) -> None:
    grid, rows = Grid.create(counted, 20), 20
    for row in range(rows):
        grid.write("a", row, 5)
    plain = Grid(counted.inner, grid.ref)
    seen: list[dict[Cell, int]] = [{} for _ in range(1_000)]

    async def read(newest: dict[Cell, int]) -> None:
        async for event in AsyncSubscription(counted, grid.ref, Scope()):
            cell = event.state.tag, event.state.task_index
            assert newest.get(cell, 0) < event.state.version
            newest[cell] = event.state.version

    async def body() -> None:
        threads = threading.active_count()
        async with heartbeat() as delays:
            tasks = []
            for newest in seen:
                tasks.append(asyncio.create_task(read(newest)))
                await asyncio.sleep(0)  # tasks that start together would block the loop themselves
            await until(lambda: all(len(newest) == rows for newest in seen), 2 * PATIENCE)
            assert len(counted.open) == counted.created == 1
            assert threading.active_count() < threads + 20 + (os.cpu_count() or 1)
            for status in range(6, 10):
                for row in range(rows):
                    await asyncio.to_thread(plain.write, "a", row, status)
            last = versions(plain)
            await until(lambda: all(newest == last for newest in seen), 2 * PATIENCE)
        assert sorted(delays)[-3] < LONGEST_BLOCK, "the event loop was blocked"
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        tasks.clear()
        await until(lambda: not counted.open, 1.0)

    run(body())


def test_a_slow_subscriber_holds_little_memory() -> None:
    from celery_statemanager import open_store

    store = open_store("memory://")
    grid, rows = Grid.create(store, 2_000), 2_000
    for row in range(rows):
        grid.write("a", row, 5, payload='{"text": "' + "x" * 1_000 + '"}')

    async def body() -> None:
        async with AsyncSubscription(store, grid.ref, Scope()) as first:
            newest: dict[Cell, int] = {}
            await read_until(first, newest, versions(grid))
            tracemalloc.start()
            slow = [AsyncSubscription(store, grid.ref, Scope()) for _ in range(10)]
            for events in slow:
                await events.__anext__()
            before = tracemalloc.take_snapshot()
            for row in range(rows):
                grid.write("a", row, 6)
            await read_until(first, newest, versions(grid))
            grown = sum(each.size_diff for each in tracemalloc.take_snapshot().compare_to(before, "filename"))
            tracemalloc.stop()
            assert grown < 10 * 1024 * 1024
            last: dict[Cell, StateEvent] = {}
            while len(last) < rows or any(event.state.version < 2 for event in last.values()):
                event = await slow[0].__anext__()
                last[event.state.tag, event.state.task_index] = event
            for events in slow:
                await events.aclose()

    run(body())


def test_a_forked_child_has_hubs_of_its_own(store: Store) -> None:
    store.expect_forks()
    grid = Grid.create(store, 2)
    grid.write("a", 0, 5)

    async def read() -> int:
        async with grid.manager().asubscribe() as events:
            return (await events.__anext__()).state.status

    async def body() -> None:
        async with grid.manager().asubscribe() as events:
            await events.__anext__()
            assert hubs._sources
            child = await asyncio.to_thread(_fork, lambda: run(read()))
            assert child == 5
            grid.write("a", 1, 5)
            assert (await events.__anext__()).state.task_index == 1

    run(body())


def _fork(child: Callable[[], int]) -> int:
    """Return what a function returns in a forked child; 255 if it raises."""
    pid = os.fork()
    if pid == 0:
        status = 255
        try:
            status = child()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
