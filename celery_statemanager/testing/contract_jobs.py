"""Jobs: creation, reads, changes by compare-and-set, lists."""

from __future__ import annotations

from dataclasses import replace

import pytest

from celery_statemanager.errors import JobExists, JobNotFound
from celery_statemanager.manager import Manager
from celery_statemanager.records import LATCHES, Cancellation, Flow, JobKey, Latch, new_job
from celery_statemanager.stores.base import Store
from celery_statemanager.testing.kit import FakeClock, Grid, every_job

MINUTE = 60_000_000


class JobContract:
    """Tests of job records."""

    def test_create_job_returns_the_stored_job(self, store: Store) -> None:
        before = store.now()
        made = store.create_job(new_job("etl", 4, ("a", "b"), "run 1"))
        assert before <= made.created_at <= store.now()
        assert made.last_activity == made.created_at
        assert store.get_job(JobKey("etl", "run 1")) == made
        assert (made.num_tasks, made.plan and made.plan.tags) == (4, ("a", "b"))

    def test_require_accepts_a_store_that_contains_a_job(self, store: Store) -> None:
        store.create_job(new_job("etl", 1))
        store.require()

    def test_creating_a_job_with_an_existing_name_is_refused_even_if_it_is_tombstoned(self, store: Store) -> None:
        grid = Grid.create(store)
        with pytest.raises(JobExists):
            Grid.create(store)
        grid.tombstone()
        with pytest.raises(JobExists):
            Manager.create(store, "job", num_tasks=9)
        assert grid.job.num_tasks == 3

    def test_run_tokens_separate_the_runs_of_a_job(self, store: Store) -> None:
        for rows, token in enumerate((None, "1", "2", "None"), start=1):
            Grid.create(store, rows, run_token=token).write("a", 0, rows)
        for rows, token in enumerate((None, "1", "2", "None"), start=1):
            manager = Manager.open(store, "job", run_token=token)
            assert (manager.num_tasks, manager.get_state().job_id) == (rows, "job")
            assert manager.get_state("a", 0).status == rows
        with pytest.raises(JobNotFound):
            Manager.open(store, "job", run_token="3")  # noqa: S106

    def test_the_runs_of_a_job_are_listed_by_their_tokens(self, store: Store) -> None:
        tokens = {None, "1", "2 *?[a]\\^-", "%+/:", "läuft"}
        names = ["job", "job*", "job:1", "job 1", "jo", "jobs", "[j]ob", "%"]
        for name in names:
            for token in tokens if name == "job" else {None, "other"}:
                store.create_job(new_job(name, 1, run_token=token))
        assert sorted(map(str, store.list_runs("job"))) == sorted(map(str, tokens))
        for name in names[1:]:
            assert set(store.list_runs(name)) == {None, "other"}
        assert store.list_runs("nobody") == []
        some = store.list_runs("job", limit=2)
        assert len(some) == 2
        assert set(some) < tokens

    def test_tombstoned_runs_are_listed_and_deleted_ones_are_not(self, store: Store) -> None:
        gone, hidden = (Grid.create(store, run_token=token) for token in ("gone", "hidden"))
        store.delete_job(gone.job)
        hidden.tombstone()
        assert store.list_runs("job") == ["hidden"]

    def test_job_not_found_names_the_existing_runs(self, store: Store) -> None:
        store.create_job(new_job("etl", 1, run_token="monday"))  # noqa: S106
        store.create_job(new_job("etl", 1, run_token="tuesday"))  # noqa: S106
        unknown: tuple[str | None, ...] = (None, "wednesday")
        for token in unknown:
            with pytest.raises(JobNotFound, match=r"no job 'etl'.*; runs of it: 'monday', 'tuesday'") as caught:
                Manager.open(store, "etl", run_token=token)
            assert (caught.value.job_id, caught.value.run_token) == ("etl", token)
            assert sorted(map(str, caught.value.runs)) == ["monday", "tuesday"]

    def test_an_unknown_job_is_not_found(self, store: Store) -> None:
        with pytest.raises(JobNotFound):
            store.get_job(JobKey("nobody"))
        with pytest.raises(LookupError):
            Manager.open(store, "nobody")

    def test_a_plan_is_read_back_unchanged(self, store: Store) -> None:
        plans = [None, ("b", "a"), {"scan": range(5), "tag: 1/2": [0, 3, 4]}, {"ß": [1, 0], "x": {2, 3, 4}}]
        for number, tags in enumerate(plans):
            job = new_job(f"job {number}", 5, tags)
            store.create_job(job)
            assert store.get_job(job.key).plan == job.plan

    def test_a_job_of_ten_million_rows_can_be_summarized(self, store: Store) -> None:
        grid = Grid.create(store, 10_000_000, ("a", "b"))
        grid.write("b", 9_999_999, -3)
        assert grid.lowest().task_index == 9_999_999
        assert grid.manager().summary().missing_indexes
        assert grid.manager().summary(indexes=False).not_started == 19_999_999

    def test_an_update_changes_the_mutable_fields_and_the_revision(self, store: Store) -> None:
        old = Grid.create(store, tags=("a",)).job
        changed = replace(
            old.with_latches(success=Latch("s", 5, 6), failure=Latch("f")),
            metadata='{"owner":"wörds"}',
            cancelled=Cancellation("wörds", 7),
            flow=Flow(3, "0-1", 8),
            tombstoned_at=9,
            schema_version=old.schema_version + 1,
        )
        assert store.update_job(changed) == ("settled",)
        new = store.get_job(old.key)
        assert new.revision != old.revision
        settled = new.latches["settled"]
        assert replace(new, revision=old.revision) == changed.with_latches(settled=settled)
        assert store.update_job(replace(new, cancelled=None, flow=None, tombstoned_at=None)) is not None
        cleared = store.get_job(old.key)
        assert (cleared.cancelled, cleared.flow, cleared.tombstoned_at) == (None, None, None)

    def test_the_metadata_of_a_job_are_stored_with_it(self, store: Store) -> None:
        texts = (None, '{"title":"läuft \\u0000 \\"now\\"","tags":["a",1]}', '{"x":"' + "y" * 4_000 + '"}')
        for number, metadata in enumerate(texts):
            job = store.create_job(replace(new_job(f"job {number}", 1), metadata=metadata))
            assert store.get_job(job.key).metadata == job.metadata == metadata
            Grid(store, job.ref).write("a", 0, 5)
            assert store.column_summaries(job.ref)[0].metadata == metadata

    def test_an_update_of_an_outdated_record_changes_nothing(self, store: Store) -> None:
        grid = Grid.create(store)
        old = grid.job
        grid.tombstone()
        kept = grid.job
        assert store.update_job(replace(old, cancelled=Cancellation("late", 1))) is None
        assert grid.job == kept

    def test_an_update_does_not_change_the_immutable_fields(self, store: Store) -> None:
        old = Grid.create(store, 3, ("a",)).job
        bent = replace(old, num_tasks=9, plan=new_job("x", 9, ("z",)).plan, created_at=1, last_activity=2)
        assert store.update_job(bent) == ()
        assert replace(store.get_job(old.key), revision=old.revision) == old

    def test_updating_a_deleted_or_replaced_job_raises_job_not_found(self, store: Store) -> None:
        grid = Grid.create(store)
        old = grid.job
        grid.delete()
        with pytest.raises(JobNotFound):
            store.update_job(old)
        successor = Grid.create(store).job
        with pytest.raises(JobNotFound):
            store.update_job(replace(old, revision=successor.revision))
        assert store.get_job(old.key) == successor

    def test_altering_a_record_does_not_alter_the_stored_job(self, store: Store) -> None:
        given = new_job("job", 2, {"a": [0, 1]})
        latches = dict(given.latches)
        store.create_job(replace(given, latches=latches))
        latches["success"] = Latch("bent")
        got = store.get_job(given.key)
        got.latches["failure"] = Latch("bent")  # type: ignore[index]
        kept = store.get_job(given.key)
        assert kept.latches == dict.fromkeys(LATCHES, Latch())
        changed = {**kept.latches, "failure": Latch("meant")}
        store.update_job(replace(kept, latches=changed))
        changed["failure"] = Latch("bent")
        assert store.get_job(given.key).latches["failure"] == Latch("meant")

    def test_pages_contain_every_job_exactly_once(self, store: Store) -> None:
        names = {f"job {number}" for number in range(25)}
        for name in names:
            Grid.create(store, job_id=name)
        for limit in (1, 7, 25, 100):
            assert sorted(job.job_id for job in every_job(store, limit)) == sorted(names)
        assert Grid(store, next(every_job(store)).ref).job in list(every_job(store))

    def test_paging_continues_while_the_listed_jobs_are_deleted(self, store: Store) -> None:
        for number in range(9):
            Grid.create(store, job_id=f"job {number}")
        met = []
        for job in every_job(store, 2):
            met.append(job.job_id)
            store.delete_job(job)
        assert len(met) == len(set(met)) == 9
        assert not list(every_job(store))

    def test_only_jobs_that_need_a_sweep_are_due(self, store: Store) -> None:
        grids = [Grid.create(store, 1, ("a",), job_id=f"job {number}", success="call") for number in range(12)]
        for grid in grids[3:6]:
            grid.run("a", 0)
        grids[7].update(lambda job: replace(job, flow=Flow()))
        due = sorted(job.job_id for job in every_job(store, 2, due=True))
        assert due == ["job 3", "job 4", "job 5", "job 7"]
        grids[4].update(lambda job: job.with_latches(success=replace(job.latches["success"], published_at=store.now())))
        grids[7].update(lambda job: replace(job, flow=None))
        assert sorted(job.job_id for job in every_job(store, due=True)) == ["job 3", "job 5"]
        grids[3].delete()
        assert [job.job_id for job in every_job(store, due=True)] == ["job 5"]

    def test_only_tombstoned_jobs_are_listed_as_tombstoned(self, store: Store) -> None:
        grids = [Grid.create(store, job_id=f"job {number}") for number in range(7)]
        for grid in grids[1:5]:
            grid.tombstone()
        marked = sorted(job.job_id for job in every_job(store, 2, tombstoned=True))
        assert marked == ["job 1", "job 2", "job 3", "job 4"]
        grids[2].update(lambda job: replace(job, tombstoned_at=None))
        grids[3].delete()
        grids[4].write("a", 0, 5)
        assert sorted(job.job_id for job in every_job(store, tombstoned=True)) == ["job 1", "job 4"]
        grids[2].tombstone()
        assert sorted(job.job_id for job in every_job(store, tombstoned=True)) == ["job 1", "job 2", "job 4"]

    def test_idle_jobs_are_those_without_activity_since_the_given_time(self, store: Store) -> None:
        jobs = [Grid.create(store, job_id=f"job {number}").job for number in range(5)]
        assert not list(every_job(store, idle_before=jobs[0].last_activity))
        later = store.now() + MINUTE
        assert len(list(every_job(store, 2, idle_before=later))) == 5
        assert not list(every_job(store, due=True, idle_before=later))

    def test_a_write_makes_a_job_active(self, clocked_store: Store, clock: FakeClock) -> None:
        busy, idle = (Grid.create(clocked_store, job_id=name) for name in ("busy", "idle"))
        clock.advance(3600)
        before = clocked_store.now()
        busy.write("a", 0, 5)
        assert before - MINUTE <= busy.job.last_activity <= clocked_store.now()
        assert [job.job_id for job in every_job(clocked_store, idle_before=before - MINUTE)] == ["idle"]
        clock.advance(3600)
        before = clocked_store.now()
        idle.begin("a", 0)
        assert [job.job_id for job in every_job(clocked_store, idle_before=before - MINUTE)] == ["busy"]
