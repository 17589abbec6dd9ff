"""Concurrent writers and forks: exact versions, one attempt, one decision per latch (rules R2, R11, R14, R15)."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, cycle
from typing import Any

import pytest

from celery_statemanager import JobExists, JobNotFound, Manager, Store, StoreError, open_store
from celery_statemanager.records import LATCHES, Claimed, ClaimRequest, Flow, JobRecord, Verdict, Write, new_job
from celery_statemanager.stores.capabilities import Outbox
from celery_statemanager.testing import Grid, StoreFactory, load
from celery_statemanager.testing.kit import FINISHED, every_job, purge, smoke

THREADS = 8
TIMES = 20
SAME = [("a", 0), ("b", 1)]
PLACES = [(tag, row) for tag in "abc" for row in range(8)]

both_start_methods = pytest.mark.parametrize("start_method", ["fork", "spawn"])
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture
def store(store_factory: StoreFactory) -> Iterator[Store]:
    """Yield an empty store with a long timeout."""
    with store_factory.make(timeout=load.PATIENCE) as store:
        yield store


@pytest.fixture
def url(store_factory: StoreFactory) -> str:
    if store_factory.url is None:
        pytest.skip("its data exist only in one store object")
    return store_factory.url


def check_versions(grid: Grid, done: Iterable[tuple[tuple[str, int], int]], expected: int) -> None:
    """Check that each cell got every version from 1 to ``expected`` once, and has the last one."""
    done = list(done)
    for place in {place for place, _ in done}:
        assert sorted(version for each, version in done if each == place) == list(range(1, expected + 1))
        assert grid.cell(*place).version == expected


def test_threads_writing_the_same_cells_get_every_version_once(store: Store) -> None:
    grid = Grid.create(store)
    parts = load.in_threads(THREADS, lambda _: load.write_cells(store, grid.ref, SAME, TIMES))
    check_versions(grid, chain.from_iterable(parts), THREADS * TIMES)


def test_threads_writing_different_cells_keep_the_tally_exact(store: Store) -> None:
    grid = Grid.create(store, 8, ("a", "b", "c"))
    parts = load.in_threads(THREADS, lambda row: load.write_cells(store, grid.ref, [("a", row), ("b", row)], TIMES))
    check_versions(grid, chain.from_iterable(parts), TIMES)
    summary = grid.manager().summary(indexes=False)
    assert (summary.running, summary.not_started) == (16, 8)
    assert summary.fraction == pytest.approx(sum(state.fraction or 0 for state in grid.states()) / 24)


def test_only_one_of_many_threads_begins_a_cell(store: Store) -> None:
    grid = Grid.create(store)
    for place in SAME:
        verdicts = Counter(load.in_threads(THREADS, lambda _, place=place: load.begin_cell(store, grid.ref, place)))
        assert verdicts == {Verdict.BEGUN: 1, Verdict.DUPLICATE: THREADS - 1}
        assert grid.cell(*place).attempt == 1
    assert len(list(store.list_open_attempts())) == len(SAME)


@smoke
def test_each_latch_is_decided_once_when_threads_end_the_last_cells_together(store: Store) -> None:
    for number in range(5):
        grid = Grid.create(store, THREADS, ("a",), job_id=f"job {number}")
        parts = load.in_threads(THREADS, lambda row, grid=grid: load.end_cells(store, grid.ref, [("a", row)]))
        assert sorted(chain.from_iterable(parts)) == ["settled", "success"]
        assert grid.decided == {"success", "settled"}


def test_only_one_thread_wins_each_compare_and_set(store: Store) -> None:
    grid = Grid.create(store)

    def count(_: int) -> None:
        for _ in range(10):
            grid.update(lambda job: replace(job, schema_version=job.schema_version + 1))

    before = grid.job.schema_version
    load.in_threads(THREADS, count)
    assert grid.job.schema_version == before + 10 * THREADS


def test_only_one_of_many_threads_acquires_a_free_lock(store: Store) -> None:
    for _ in range(TIMES):
        taken = load.in_threads(THREADS, lambda number: store.try_acquire("turn", f"holder {number}", 60))
        assert Counter(taken) == {True: 1, False: THREADS - 1}
        store.drop_worker("turn")


def test_only_one_of_many_threads_creates_a_job(store: Store) -> None:
    def create(number: int) -> int | None:
        try:
            return Grid.create(store, number + 1).job.num_tasks
        except JobExists:
            return None

    (winner,) = filter(None, load.in_threads(THREADS, create))
    assert Manager.open(store, "job").num_tasks == winner


def test_a_cancel_during_endings_settles_the_job_once(store: Store) -> None:
    for number in range(5):
        grid = Grid.create(store, THREADS, ("a",), job_id=f"job {number}")
        for row in range(1, THREADS):
            grid.begin("a", row)

        def act(row: int, grid: Grid = grid) -> tuple[str, ...]:
            return grid.cancel() if row == 0 else grid.end("a", row).decided

        assert Counter(chain.from_iterable(load.in_threads(THREADS, act))) == {"settled": 1}


def create_with_messages(store: Outbox, num_tasks: int, max_in_flight: int | None, job_id: str = "job") -> Grid:
    job = replace(new_job(job_id, num_tasks, ("a", "b")), flow=Flow(max_in_flight))
    store.add_block(job.ref, 0, b"messages", load.PATIENCE)
    return Grid(store, store.create_job(job).ref)


def test_publishers_claim_each_row_once_and_never_more_than_the_window(store: Outbox) -> None:
    num_tasks, window = 40, 5
    grid = create_with_messages(store, num_tasks, window)
    ending: list[int] = []

    def publish_and_run(number: int) -> list[int]:
        request = ClaimRequest(publisher=f"p{number}", limit=2)
        done: list[int] = []
        while True:
            claimed = store.claim(grid.ref, request)
            rows = list(claimed.rows)
            if not rows and not claimed.left:
                return done
            while rows:
                assert max(rows) < len(ending) + window
                row = rows.pop()
                done.append(row)
                grid.begin("a", row)
                again = grid.end("a", row, publisher=request.publisher, next_is_due=True).claimed
                assert list(again) == [row]
                grid.begin("b", row)
                ending.append(row)
                rows += grid.end("b", row, publisher=request.publisher).claimed

    published = chain.from_iterable(load.in_threads(4, publish_and_run))
    assert sorted(published) == list(range(num_tasks))
    assert grid.decided == {"success", "settled"}


def test_the_claim_of_a_dead_publisher_is_taken_over_once(store: Outbox) -> None:
    for number in range(5):
        grid = create_with_messages(store, 3 + THREADS, None, f"job {number}")
        store.claim(grid.ref, ClaimRequest(publisher="dead", limit=3))

        def act(number: int, grid: Grid = grid) -> Claimed:
            request = ClaimRequest(publisher=f"p{number}", limit=1, dead=frozenset({"dead"}))
            return store.claim(grid.ref, request)

        claims = load.in_threads(THREADS, act)
        assert sorted(len(claim.again) for claim in claims) == [0] * (THREADS - 1) + [3]
        assert sorted(chain.from_iterable(claim.rows for claim in claims)) == list(range(3 + THREADS))
        assert sorted(claim.left for claim in claims) == list(range(THREADS))


def test_a_returned_row_is_claimed_again_once(store: Outbox) -> None:
    for number in range(3):
        grid = create_with_messages(store, 2 * THREADS, None, f"job {number}")
        store.claim(grid.ref, ClaimRequest(publisher="submitter", limit=2 * THREADS))

        def act(thread: int, grid: Grid = grid) -> list[int]:
            for row in (thread, THREADS + thread):
                store.write(grid.ref, Write.sent_back("a", row, "never received", attempt=0))
            return list(store.claim(grid.ref, ClaimRequest(publisher=f"p{thread}", limit=3)).again)

        claimed = [row for rows in load.in_threads(THREADS, act) for row in rows]
        left = store.claim(grid.ref, ClaimRequest(publisher="submitter", limit=2 * THREADS))
        assert sorted([*claimed, *left.again]) == list(range(2 * THREADS))
        assert not store.get_outbox(grid.ref).returned


def test_a_job_is_created_with_its_messages_or_not_at_all(store: Outbox) -> None:
    for number in range(10):
        job = replace(new_job(f"job {number}", 1, ("a",)), flow=Flow())
        store.add_block(job.ref, 0, b"messages", 0)

        def act(thread: int, job: JobRecord = job) -> bool:
            if thread:
                return store.drop_expired_drafts() > 0
            try:
                return store.create_job(job).revision > 0
            except StoreError:
                return False

        created, *dropped = load.in_threads(3, act)
        assert created + sum(dropped) == 1
        assert (store.get_block(job.ref, 0) is not None) == created


def test_writers_of_a_deleted_job_stop_and_leave_no_data(store: Store) -> None:
    grid = Grid.create(store, THREADS)
    writing = threading.Barrier(THREADS)  # all have written before the job is deleted

    def act(row: int) -> bool:
        if row == 0:
            writing.wait(load.PATIENCE)
            grid.delete()
            return True
        grid.write("a", row, 5)
        writing.wait(load.PATIENCE)
        try:
            while True:
                grid.write("a", row, 5)
        except JobNotFound:
            return True

    assert all(load.in_threads(THREADS, act))
    purge(store)
    assert list(every_job(store)) == []
    assert Grid.create(store).states() == []


def test_a_reader_sees_rising_versions_and_every_last_one_during_writes(store: Store) -> None:
    grid = Grid.create(store, THREADS)
    seen: dict[tuple[str, int], list[int]] = {}
    with grid.manager().subscribe() as events:
        writers = threading.Thread(
            target=lambda: load.in_threads(
                4, lambda row: load.write_cells(store, grid.ref, [("a", row), ("a", 7)], TIMES)
            )
        )
        writers.start()
        expected = {("a", row): TIMES for row in range(4)} | {("a", 7): 4 * TIMES}
        while {place: versions[-1] for place, versions in seen.items()} != expected:
            event = events.get(load.PATIENCE)
            assert event is not None
            seen.setdefault((event.state.tag, event.state.task_index), []).append(event.state.version)
        writers.join(load.PATIENCE)
        assert events.get(0.0) is None
    assert all(versions == sorted(set(versions)) for versions in seen.values())


def test_column_summaries_are_consistent_during_writes(store: Store) -> None:
    grid = Grid.create(store, THREADS, ("a",))
    stop = threading.Event()

    def write(row: int) -> None:
        for status in cycle((5, -42, FINISHED, 0)):
            if stop.is_set():
                return
            grid.write("a", row, status)

    writers = threading.Thread(target=lambda: load.in_threads(4, write))
    writers.start()
    try:
        for _ in range(TIMES):
            _, (column,) = store.column_summaries(grid.ref, indexes=True)
            running, finished, failed = column.tally[:3]
            assert column.failed is not None
            assert column.running is not None
            assert column.missing is not None
            assert (len(column.running), len(column.failed)) == (running, failed)
            assert len(column.missing) == THREADS - running - finished - failed
    finally:
        stop.set()
        writers.join(load.PATIENCE)


@both_start_methods
def test_processes_writing_the_same_cells_get_every_version_once(store: Store, url: str, start_method: str) -> None:
    grid = Grid.create(store)
    grid.states()
    parts = load.in_processes(start_method, load.write_cells_by_url, *[(url, grid.ref, SAME, TIMES, 2)] * 3)
    check_versions(grid, chain.from_iterable(parts), 3 * 2 * TIMES)


def test_processes_open_and_close_the_store_concurrently(store_factory: StoreFactory, url: str) -> None:
    with open_store(url) as first:
        grid = Grid.create(first)
    parts = load.in_processes("fork", load.reopen_and_write, *[(url, grid.ref, SAME, TIMES)] * 4)
    with open_store(url) as last:
        check_versions(grid.seen_by(last), chain.from_iterable(parts), 4 * TIMES)


@both_start_methods
def test_processes_begin_each_cell_once(store: Store, url: str, start_method: str) -> None:
    grid = Grid.create(store, 8)
    parts = load.in_processes(start_method, load.begin_cells_by_url, *[(url, grid.ref, PLACES)] * 3)
    for verdicts in zip(*parts):
        assert Counter(verdicts) == {Verdict.BEGUN: 1, Verdict.DUPLICATE: 2}
    assert {grid.cell(*place).attempt for place in PLACES} == {1}
    assert len(list(store.list_open_attempts())) == len(PLACES)


@both_start_methods
def test_each_latch_is_decided_once_when_processes_end_the_cells(store: Store, url: str, start_method: str) -> None:
    grid = Grid.create(store, 8, ("a", "b", "c"), success="call", settled="call")
    shares = [(url, grid.ref, PLACES[number::3]) for number in range(3)]
    parts = load.in_processes(start_method, load.end_cells_by_url, *shares)
    assert sorted(chain.from_iterable(parts)) == ["settled", "success"]
    assert {name for name in LATCHES if grid.job.latches[name].due} == {"success", "settled"}
    assert grid.manager().summary(indexes=False).finished == len(PLACES)


def forked(act: Callable[[], Any]) -> Any:
    """Call a function in a forked child and return its result.

    Raises: AssertionError with the child's error, or with its stacks if it does not answer.
    """
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def run() -> None:
        faulthandler.register(signal.SIGUSR1, file=stacks)
        try:
            sender.send((True, act()))
        except BaseException as error:
            sender.send((False, repr(error)))
            raise

    with tempfile.TemporaryFile("w+") as stacks:
        child = multiprocessing.get_context("fork").Process(target=run)
        child.start()
        try:
            if not receiver.poll(load.PATIENCE):
                os.kill(child.pid, signal.SIGUSR1)
                child.join(1)
                stacks.seek(0)
                raise AssertionError(f"the child did not answer:\n{stacks.read()}")
            worked, result = receiver.recv()
            assert worked, result
            child.join(load.PATIENCE)
            assert child.exitcode == 0
            return result
        finally:
            child.kill()


def use(manager: Manager) -> tuple[int, int]:
    """Make a call of each kind; return the process id and the version written."""
    manager.set_state("a", 5)
    state = manager.progress("a", 1, 2)
    assert manager.get_state("a", manager.task_index).version == state.version
    assert manager.summary().running >= 1
    manager.begin("b")
    manager.set_state("b", 7)
    with manager.subscribe(task_index=manager.task_index) as events:
        assert events.get(load.PATIENCE) is not None
    return os.getpid(), state.version


def test_a_manager_used_before_a_fork_works_in_parent_and_child(store: Store) -> None:
    manager = Manager.create(store, "job", num_tasks=2, task_index=0)
    assert use(manager) == (os.getpid(), 2)
    child, version = forked(lambda: use(manager))
    assert (child != os.getpid(), version) == (True, 4)
    assert use(manager)[0] == os.getpid()
    assert forked(lambda: forked(lambda: use(manager)))[0] != os.getpid()
    use(manager)


def test_parent_and_child_see_each_others_writes(store: Store, url: str) -> None:
    manager = Manager.create(store, "job", num_tasks=2, task_index=0)
    versions = [use(manager)[1]]
    for _ in range(3):
        versions.append(forked(lambda: use(manager))[1])
        versions.append(use(manager)[1])
    assert versions == [2, 4, 6, 8, 10, 12, 14]


def test_a_store_not_used_before_a_fork_works_after_it(store_factory: StoreFactory, url: str) -> None:
    with open_store(url) as store:
        Grid.create(store, 2)
    fresh = store_factory.make()
    manager = forked(lambda: use(Manager.open(fresh, "job", task_index=0)))
    assert manager[1] == 2
    assert use(Manager.open(fresh, "job", task_index=0))[1] == 4
    fresh.close()


def test_a_subscription_continues_in_the_parent_after_a_fork(store: Store) -> None:
    store.expect_forks()
    manager = Manager.create(store, "job", num_tasks=2, task_index=0)
    manager.set_state("a", 1)
    with manager.subscribe() as events:
        assert next(events).state.version == 1
        forked(lambda: use(Manager.open(store, "job", task_index=1)))
        manager.set_state("a", 2)
        event = events.get(load.PATIENCE)
        while event is not None and event.state.task_index == 1:
            event = events.get(load.PATIENCE)
        assert event is not None
        assert event.state.version == 2


def test_a_subscription_continues_in_parent_and_child_after_a_fork(
    store: Store, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.expect_forks()
    manager = Manager.create(store, "job", num_tasks=1, task_index=0)
    manager.set_state("a", 1)
    with manager.subscribe() as events:
        assert next(events).state.version == 1

        def read_on() -> int:
            manager.set_state("a", 2)
            event = events.get(load.PATIENCE)
            manager.close()
            assert event is not None
            return event.state.version

        assert forked(read_on) == 2
        event = events.get(load.PATIENCE)
        assert event is not None
        assert event.state.version == 2
        manager.set_state("a", 3)
        event = events.get(load.PATIENCE)
        assert event is not None
        assert event.state.version == 3
    assert caplog.messages == []


def test_a_child_that_closes_its_manager_does_not_affect_the_parent(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.expect_forks()
    manager = Manager.create(store, "job", num_tasks=1, task_index=0)
    with manager.subscribe() as events:
        assert events.get(0) is None
        forked(manager.close)
        manager.set_state("a", 1)
        event = events.get(load.PATIENCE)
        assert event is not None
        assert event.state.version == 1
    assert caplog.messages == []


def test_a_closed_store_reopens_before_and_after_a_fork(store: Store) -> None:
    manager = Manager.create(store, "job", num_tasks=2, task_index=0)
    use(manager)
    store.close()
    assert forked(lambda: use(manager))[1] == 4
    store.close()
    use(manager)


def test_children_of_a_used_store_write_exact_versions(store: Store, url: str) -> None:
    manager = Manager.create(store, "job", num_tasks=2, task_index=0)
    manager.set_state("a", 1)
    context = multiprocessing.get_context("fork")

    def write() -> None:
        for _ in range(TIMES):
            manager.set_state("a", 5)

    children = [context.Process(target=write) for _ in range(4)]
    for child in children:
        child.start()
    write()
    for child in children:
        child.join(load.PATIENCE)
    assert [child.exitcode for child in children] == [0] * 4
    assert manager.get_state("a", 0).version == 1 + 5 * TIMES


def test_a_store_that_expects_forks_allows_them_during_calls(store: Store, url: str) -> None:
    store.expect_forks()
    manager = Manager.create(store, "job", num_tasks=3, task_index=0)
    stopped = threading.Event()

    def write(row: int) -> int:
        with Manager.open(store, "job", task_index=row) as own:
            while not stopped.is_set():
                version = own.set_state("a", 5).version
        return version

    with ThreadPoolExecutor() as threads:
        written = [threads.submit(write, row) for row in (1, 2)]
        try:
            assert [forked(lambda: use(manager))[1] for _ in range(4)] == [2, 4, 6, 8]
        finally:
            stopped.set()
    assert [manager.get_state("a", row).version for row in (1, 2)] == [each.result() for each in written]
