"""Overviews of jobs, over every store."""

from __future__ import annotations

from dataclasses import replace

from celery_statemanager import Manager, Status, Store
from celery_statemanager.overview import Phase, Wanted, list_overviews, look_alikes, overview
from celery_statemanager.records import Cancellation, JobKey
from celery_statemanager.testing.kit import FAILED, FINISHED, Grid

ENDS = {"finished": Status.FINISHED, "failed": Status.FAILED}


def test_each_job_is_in_its_phase_and_the_most_recently_written_comes_first(store: Store) -> None:
    for name in ("cancelled", "waiting", "running", "failing", "finished", "failed"):
        manager = Manager.create(store, name, num_tasks=2, tags=("b", "a"), task_index=1)
        if name in ("running", "failing"):
            manager.set_state("a", 40 if name == "running" else Status.FAILED)
        for row in (0, 1) if name in ENDS else ():
            for tag in ("a", "b"):
                Manager.open(store, name, task_index=row).set_state(tag, ENDS[name])
    job = Manager.open(store, "cancelled").ref
    store.update_job(replace(store.get_job(job.key), cancelled=Cancellation("why", store.now())))
    found, total = list_overviews(store, Wanted(), 9)
    assert {each.job.job_id for each in found} == {phase.value for phase in Phase}
    assert all(each.phase.value == each.job.job_id for each in found)
    assert total == 6
    times = [each.job.last_activity for each in found]
    assert times == sorted(times, reverse=True)
    assert list_overviews(store, Wanted(phases=frozenset({Phase.FAILING})), 9)[1] == 1
    shown = overview(store, Manager.open(store, "failing").ref, indexes=True)
    assert list(shown.tags) == ["b", "a"]
    assert str(shown.tags["a"].failed_indexes) == "1"


def test_a_job_with_rows_that_were_not_run_stays_failed_after_the_failed_cell_is_overwritten(store: Store) -> None:
    grid = Grid.create(store, 1, ("scan", "save"))
    grid.run("scan", 0, FAILED)
    grid.write("scan", 0, FINISHED)
    shown = overview(store, grid.ref)
    assert (shown.summary.failed, shown.summary.not_run, shown.phase) == (0, 1, Phase.FAILED)


def test_similar_jobs_are_found_for_a_missing_one(store: Store) -> None:
    Manager.create(store, "etl-42", num_tasks=1)
    for token in ("monday", "tuesday"):
        Manager.create(store, "report", num_tasks=1, run_token=token)
    assert look_alikes(store, JobKey("etl-24")) == [JobKey("etl-42")]
    assert set(look_alikes(store, JobKey("report"))) == {JobKey("report", "monday"), JobKey("report", "tuesday")}
    assert look_alikes(store, JobKey("etl-42", "monday")) == [JobKey("etl-42")]
    assert look_alikes(store, JobKey("something else")) == []
