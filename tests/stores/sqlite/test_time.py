"""Timestamps in a file that several processes write."""

from __future__ import annotations

from pathlib import Path

from sqlite_kit import opened, raw

from celery_statemanager.records import CALLBACK_ROW
from celery_statemanager.testing.kit import FAILED, FakeClock, Grid


class TestTime:
    def test_timestamps_never_decrease_when_the_clock_does(self, path: Path) -> None:
        clock = FakeClock()
        with opened(path, clock=clock) as store:
            grid = Grid.create(store, 2, ("a",))
            clock.advance(60)
            newest = grid.run("a", 0, FAILED).cell.timestamp
            clock.advance(-3600)
            assert grid.write("b", 1, 5).cell.timestamp == newest
            assert grid.begin("a", 1).cell.began_at == newest
            clock.advance(3601)
            assert grid.write("b", 1, 5).cell.timestamp == newest + 1_000_000

    def test_a_write_after_a_decision_is_not_earlier_than_it(self, path: Path) -> None:
        clock = FakeClock()
        with opened(path, clock=clock) as store:
            grid = Grid.create(store, 1, ("a",))
            clock.advance(60)
            grid.cancel()
            decided = grid.job.latches["settled"].decided_at
            clock.advance(-30)
            assert grid.run("settled", CALLBACK_ROW).cell.timestamp == decided

    def test_last_activity_is_exact_although_it_is_stored_once_a_minute(self, path: Path) -> None:
        clock = FakeClock()
        with opened(path, clock=clock) as store, raw(path) as db:
            grid = Grid.create(store)
            stored = []
            for _ in range(5):
                clock.advance(25)
                grid.write("a", 0, 5)
                stored.append(db.execute("SELECT touched FROM job").fetchone()[0] - grid.job.created_at)
                active = grid.job.last_activity
                assert active == store.now()
                assert [store.list_jobs(idle_before=active + more).jobs != [] for more in (0, 1)] == [False, True]
            assert stored == [0, 0, 75_000_000, 75_000_000, 75_000_000]
            clock.advance(25)
            grid.tombstone()
            assert grid.job.last_activity == active

    def test_idle_jobs_are_paged_while_some_become_active(self, path: Path) -> None:
        clock = FakeClock()
        with opened(path, clock=clock) as store:
            grids = {name: Grid.create(store, job_id=name) for name in "abcdefgh"}
            clock.advance(3600)
            first = store.list_jobs(limit=3, idle_before=store.now())
            grids["e"].write("a", 0, 5)
            rest = store.list_jobs(first.cursor, 100, idle_before=store.now())
            assert [job.job_id for job in first.jobs + rest.jobs] == list("abcdfgh")
            assert rest.cursor is None
