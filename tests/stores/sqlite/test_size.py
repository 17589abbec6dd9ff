"""What a job costs in bytes, instructions and memory, whatever its size."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlite_kit import fill, in_child, instruction_count, opened, path_of, raw

from celery_statemanager.errors import JobNotFound
from celery_statemanager.models import Scope
from celery_statemanager.stores.sqlite import SQLiteStore
from celery_statemanager.stores.sqlite.listing import PAGE
from celery_statemanager.testing.kit import FakeClock, Grid

MANY = 100_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    path = tmp_path_factory.mktemp("large") / "states.db"
    with opened(path) as store:
        grid = Grid.create(store, MANY, ("a", "b"))
        fill(store, grid.ref, MANY)
        yield grid


class TestSize:
    def test_a_state_takes_at_most_300_bytes(self, large: Grid) -> None:
        with raw(path_of(large)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert path_of(large).stat().st_size / MANY <= 300

    @pytest.mark.parametrize(
        "work",
        [
            lambda grid: grid.lowest(),
            lambda grid: grid.lowest("a"),
            lambda grid: grid.state("a", 50),
            lambda grid: grid.lowest(row=50),
            lambda grid: grid.store.column_summaries(grid.ref),
            lambda grid: grid.write("a", 50, 5),
            lambda grid: grid.begin("a", 50, takes_over=True),
            lambda grid: grid.cell("a", 50),
            lambda grid: grid.job,
            lambda grid: grid.store.list_jobs(due=True),
            lambda grid: grid.store.list_jobs(idle_before=1),
            lambda grid: list(grid.store.list_open_attempts()),
            lambda grid: next(grid.store.list_states(grid.ref, Scope())),
            lambda grid: grid.states(row=50),
            lambda grid: grid.store.watch(grid.ref, Scope()).read(0),
        ],
    )
    def test_no_cost_grows_with_the_job(self, large: Grid, tmp_path: Path, work: Callable[[Grid], object]) -> None:
        with opened(tmp_path / "small.db") as store:
            small = Grid.create(store, 600, ("a", "b"))
            fill(store, small.ref, 600)
            assert (
                instruction_count(large, lambda: work(large)) <= 2 * instruction_count(small, lambda: work(small)) + 50
            )

    def test_the_newest_jobs_cost_the_same_among_few_and_many(self, path: Path, store: SQLiteStore) -> None:
        counts = []
        for number in range(2_000):
            grid = Grid.create(store, 1, job_id=f"job {number}")
            if number in (99, 1_999):
                cursor = store.newest_jobs(limit=50)[-1].cursor
                for start in (None, cursor):
                    page = store.newest_jobs(start, 20)
                    skipped = 0 if start is None else 50
                    assert [each.job.job_id for each in page] == [f"job {number - skipped - at}" for at in range(20)]
                    counts.append(instruction_count(grid, lambda start=start: store.newest_jobs(start, 20)))
        assert max(counts) <= 1.1 * min(counts) + 5

    def test_a_slow_listing_holds_no_transaction_and_little_memory(self, large: Grid) -> None:
        with raw(path_of(large)) as db:
            states = large.store.list_states(large.ref, Scope())
            next(states)
            tracemalloc.start()
            count, checked = 1, 0
            for count, _ in enumerate(states, start=2):
                if count % 9_000 == 0:
                    large.write("b", 0, 5)
                    busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
                    assert busy == 0
                    checked += 1
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert count in (MANY, MANY + 1)
        assert checked > 10
        assert peak < 5_000_000

    def test_a_listing_has_every_state_once_and_in_order_during_writes(self, path: Path, store: SQLiteStore) -> None:
        grid = Grid.create(store, 3 * PAGE)
        fill(store, grid.ref, 3 * PAGE)
        listing = store.list_states(grid.ref, Scope())
        seen = []
        for state in listing:
            seen.append(state)
            if len(seen) % 100 == 0:
                for row in (len(seen) - 1, 3 * PAGE - 1 - len(seen) // 3):
                    grid.write("a", row, 7)
        assert sorted(state.task_index for state in seen) == list(range(3 * PAGE))
        assert [state.timestamp for state in seen] == sorted(state.timestamp for state in seen)  # type: ignore[type-var]

    def test_states_with_equal_timestamps_are_ordered_by_tag_and_row(self, path: Path) -> None:
        with opened(path, clock=FakeClock()) as store:
            grid = Grid.create(store, PAGE)
            for row in reversed(range(PAGE)):
                for tag in ("b", "Ä", "a"):
                    grid.write(tag, row, 5)
            expected = [(tag, row) for tag in ("a", "b", "Ä") for row in range(PAGE)]
            assert [(state.tag, state.task_index) for state in grid.states()] == expected

    def test_a_listing_fails_when_its_job_is_deleted(self, store: SQLiteStore) -> None:
        grid = Grid.create(store, 2 * PAGE)
        fill(store, grid.ref, 2 * PAGE)
        states = store.list_states(grid.ref, Scope())
        next(states)
        grid.delete()
        with pytest.raises(JobNotFound):
            list(states)

    def test_a_large_job_is_deleted_at_once_and_purged_by_any_process(self, path: Path, store: SQLiteStore) -> None:
        grid = Grid.create(store, 20_000, {"a": range(0, 20_000, 2), "b": range(20_000)})
        fill(store, grid.ref, 20_000)
        assert instruction_count(grid, lambda: None) == 0
        assert store.delete_job(grid.job)
        purged = [store.purge(1_000) for _ in range(3)]
        assert purged == [1_000, 1_000, 1_000]
        in_child(lambda: [store.purge(1_000) for _ in range(3)])
        with opened(path) as other:
            while other.purge(1_000):
                pass
        with raw(path) as db:
            for table in ("job", "tag", "cell", "gap", "garbage"):
                assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)

    def test_ids_of_deleted_jobs_are_not_reused(self, path: Path, store: SQLiteStore) -> None:
        first = Grid.create(store)
        job = first.job
        first.delete()
        second = Grid.create(store)
        with raw(path) as db:
            assert db.execute("SELECT id FROM job").fetchone() == (2,)
        second.delete()
        store.create_job(job)
        assert first.write("a", 0, 5).cell.version == 1
        assert first.lowest("a", 0).status == 5
