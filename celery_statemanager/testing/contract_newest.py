"""The list of the newest jobs."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest

from celery_statemanager.records import new_job
from celery_statemanager.stores.base import Store
from celery_statemanager.testing.kit import Grid, newest_jobs, smoke


def named(numbers: range) -> list[str]:
    """Return names of jobs, which are in the order of their numbers."""
    return [f"job {number:02}" for number in numbers]


def create(store: Store, names: list[str]) -> None:
    """Create jobs, one after the other."""
    for name in names:
        Grid.create(store, 1, job_id=name)


def met(store: Store, limit: int = 100) -> list[str]:
    """Return the names of all jobs in the order of the list."""
    return [job.job_id for job in newest_jobs(store, limit)]


class NewestJobsContract:
    """Tests of ``Store.newest_jobs``."""

    def test_a_store_without_jobs_has_no_newest_ones(self, store: Store) -> None:
        assert store.newest_jobs() == []

    @smoke
    def test_the_newest_jobs_come_first_whatever_is_written(self, store: Store) -> None:
        create(store, named(range(12)))
        Grid(store, store.get_job(new_job("job 03", 1).key).ref).write("a", 0, 5)
        Grid(store, store.get_job(new_job("job 05", 1).key).ref).tombstone()
        for limit in (1, 5, 12, 100):
            assert met(store, limit) == named(range(12))[::-1]
        (newest,) = store.newest_jobs(limit=1)
        assert newest.job == store.get_job(newest.job.key)

    def test_each_run_of_a_job_is_listed(self, store: Store) -> None:
        tokens = ["1", "%+/: ß", "2"]
        for token in tokens:
            store.create_job(new_job("job *", 1, run_token=token))
        assert [job.run_token for job in newest_jobs(store, 1)] == tokens[::-1]

    def test_a_list_repeats_and_skips_no_job_while_jobs_are_created_and_deleted(self, store: Store) -> None:
        create(store, named(range(20)))
        jobs = newest_jobs(store, 4)
        first = [job.job_id for job in islice(jobs, 4)]
        for name in ("job 18", "job 16", "job 12"):  # listed, the cursor's own, and one that follows
            Grid(store, store.get_job(new_job(name, 1).key).ref).delete()
        create(store, ["job 18", "job 30"])
        rest = [job.job_id for job in jobs]
        assert first == named(range(16, 20))[::-1]
        assert rest == [name for name in named(range(16))[::-1] if name != "job 12"]
        assert met(store)[:3] == ["job 30", "job 18", "job 19"]

    def test_a_deleted_job_is_not_listed_and_one_of_the_same_name_is_the_newest(self, store: Store) -> None:
        create(store, named(range(3)))
        Grid(store, store.get_job(new_job("job 01", 1).key).ref).delete()
        assert met(store) == ["job 02", "job 00"]
        create(store, ["job 01"])
        assert met(store, 1) == ["job 01", "job 02", "job 00"]

    def test_a_second_store_continues_a_list(self, store: Store, other_store: Store) -> None:
        create(store, named(range(4)))
        page = store.newest_jobs(limit=2)
        rest = other_store.newest_jobs(page[-1].cursor)
        assert [each.job.job_id for each in (*page, *rest)] == named(range(4))[::-1]

    def test_the_list_contains_whole_records(self, store: Store) -> None:
        job = store.create_job(replace(new_job("job", 3, {"a": [0, 2], "b": [1]}), metadata='{"owner":"ß"}'))
        (found,) = store.newest_jobs()
        assert found.job == job

    @pytest.mark.parametrize("cursor", ["", "x", "-1", "1e5", "١ x", "12345678901234567 a", "5 \ud800", "5 a\0", "0x1"])
    def test_an_invalid_cursor_is_refused(self, store: Store, cursor: str) -> None:
        create(store, ["job"])
        with pytest.raises(ValueError, match="cursor must be one that an earlier page has returned, not "):
            store.newest_jobs(cursor)
        with pytest.raises(TypeError, match="cursor must be a string or None, not int 5"):
            store.newest_jobs(5)  # type: ignore[arg-type]
