"""Overviews of jobs, over every store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from celery_statemanager import IndexSet, Manager, Status, Store, open_store
from celery_statemanager.overview import Phase, Wanted, list_overviews, look_alikes, newest_page, overview
from celery_statemanager.records import Cancellation, Column, Flow, JobKey, JobRecord, JobRef
from celery_statemanager.stores import FullStore
from celery_statemanager.testing import WrappedStore
from celery_statemanager.testing.contract_rerun import end_reset
from celery_statemanager.testing.kit import FAILED, FINISHED, Grid

ENDS = {"finished": Status.FINISHED, "failed": Status.FAILED}


def test_each_job_is_in_its_phase_and_the_newest_comes_first(store: FullStore) -> None:
    Grid.submitted(store, 2, job_id="paused", flow=Flow(paused=True)).begin("a", 0)
    for name in ("cancelled", "waiting", "running", "failing", "finished", "failed"):
        manager = Manager.create(store, name, num_tasks=2, tags=("b", "a"), task_index=1)
        if name in ("running", "failing"):
            manager.set_state("a", 40 if name == "running" else Status.FAILED)
        for row in (0, 1) if name in ENDS else ():
            for tag in ("a", "b"):
                Manager.open(store, name, task_index=row).set_state(tag, ENDS[name])
    job = Manager.open(store, "cancelled").ref
    store.update_job(replace(store.get_job(job.key), cancelled=Cancellation("why", store.now())))
    found, more = list_overviews(store, Wanted(), 9)
    assert {each.job.job_id for each in found} == {phase.value for phase in Phase}
    assert all(each.phase.value == each.job.job_id for each in found)
    assert not more
    times = [each.job.created_at for each in found]
    assert times == sorted(times, reverse=True)
    for phase in Phase:
        assert [job.job_id for job in newest_page(store, Wanted(phases=frozenset({phase})), 9)[0]] == [phase.value]
    shown = overview(store, Manager.open(store, "failing").ref, indexes=True)
    assert list(shown.tags) == ["b", "a"]
    assert str(shown.tags["a"].failed_indexes) == "1"


def test_a_job_with_rows_that_were_not_run_stays_failed_after_the_failed_cell_is_overwritten(store: Store) -> None:
    grid = Grid.create(store, 1, ("scan", "save"))
    grid.run("scan", 0, FAILED)
    grid.write("scan", 0, FINISHED)
    shown = overview(store, grid.ref)
    assert (shown.summary.failed, shown.summary.not_run, shown.phase) == (0, 1, Phase.FAILED)


def test_the_phase_of_a_job_changes_with_its_cells_and_its_record(store: FullStore) -> None:
    grid = Grid.submitted(store, 2, ("a",))

    def phase() -> str:
        return overview(store, grid.ref).phase.value

    def pause(paused: bool) -> None:
        grid.update(lambda job: replace(job, flow=replace(job.flow or Flow(), paused=paused)))

    seen = [phase()]
    steps: list[Callable[[], object]] = [
        lambda: grid.begin("a", 0),
        lambda: pause(True),
        lambda: grid.end("a", 0, FAILED),
        lambda: pause(False),
        lambda: grid.run("a", 1),
        lambda: pause(True),
        lambda: grid.update(lambda job: job.with_generation(IndexSet([0]), 1)),
        lambda: pause(False),
        lambda: end_reset(grid),
        lambda: grid.cancel(),
    ]
    for step in steps:
        step()
        seen.append(phase())
    assert seen[:6] == ["waiting", "running", "paused", "paused", "failing", "failed"]
    assert seen[6:] == ["failed", "paused", "failing", "failed", "cancelled"], "a settled job is not paused"


def test_pages_of_a_search_examine_1000_jobs_and_meet_every_job_once() -> None:
    store = open_store("memory://")
    for number in range(2_600):
        Manager.create(store, f"{'wanted' if number % 1_300 == 7 else 'job'} {number}", num_tasks=1, tags=("a",))
    store.update_job(replace(store.get_job(JobKey("job 2598")), tombstoned_at=5))
    pages, cursor = [], None
    while not pages or cursor is not None:
        found, cursor = newest_page(store, Wanted("WANTED"), 5, cursor)
        pages.append([job.job_id for job in found])
    assert pages == [[], ["wanted 1307"], ["wanted 7"]]
    first, cursor = newest_page(store, Wanted(), 2)
    assert [job.job_id for job in first] == ["job 2599", "job 2597"]
    for job in first:
        store.delete_job(job)
    Manager.create(store, "later", num_tasks=1)
    assert [job.job_id for job in newest_page(store, Wanted(), 2, cursor)[0]] == ["job 2596", "job 2595"]
    everything, cursor = newest_page(store, Wanted(), 1_000)
    assert (len(everything), cursor is None) == (999, False), "a hidden job is examined too"


def test_a_page_that_contains_the_last_job_has_no_cursor(store: Store) -> None:
    for number in range(3):
        Manager.create(store, f"job {number}", num_tasks=1)
    for limit in (3, 4):
        found, cursor = newest_page(store, Wanted(), limit)
        assert ([job.job_id for job in found], cursor) == (["job 2", "job 1", "job 0"], None)
    assert newest_page(store, Wanted(), 2)[1] is not None
    assert newest_page(store, Wanted("none"), 2) == ([], None)


def test_cells_are_counted_only_for_phases_that_a_record_does_not_show() -> None:
    class Counted(WrappedStore):
        def __init__(self, inner: FullStore) -> None:
            super().__init__(inner)
            self.counted: list[str] = []

        def column_summaries(self, ref: JobRef, *arguments: Any, **options: Any) -> tuple[JobRecord, list[Column]]:
            self.counted.append(ref.key.job_id)
            return super().column_summaries(ref, *arguments, **options)

    store = Counted(open_store("memory://"))
    for name in ("done", "failed", "cancelled", "open"):
        grid = Grid.create(store, 1, ("a",), job_id=name)
        if name != "open":
            grid.run("a", 0, FINISHED if name == "done" else FAILED)
        if name == "cancelled":
            grid.cancel()
    Grid.submitted(store, job_id="paused", flow=Flow(paused=True))
    for phase in Phase:
        newest_page(store, Wanted(phases=frozenset({phase})), 10)
    assert set(store.counted) == {"open", "paused"}
    store.counted.clear()
    newest_page(store, Wanted("o"), 10)
    assert store.counted == []


def test_similar_jobs_are_found_for_a_missing_one(store: Store) -> None:
    Manager.create(store, "etl-42", num_tasks=1)
    for token in ("monday", "tuesday"):
        Manager.create(store, "report", num_tasks=1, run_token=token)
    assert look_alikes(store, JobKey("etl-24")) == [JobKey("etl-42")]
    assert set(look_alikes(store, JobKey("report"))) == {JobKey("report", "monday"), JobKey("report", "tuesday")}
    assert look_alikes(store, JobKey("etl-42", "monday")) == [JobKey("etl-42")]
    assert look_alikes(store, JobKey("something else")) == []
