"""The body of a chord: the latches of its stages and errbacks, and the values that its stages keep (rule R21)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from celery_statemanager.completion import publish_due, record_end
from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import Status
from celery_statemanager.plan import Plan
from celery_statemanager.records import CALLBACK_ROW, ERRBACKS, JobRecord, Latch, Place, body_stage, new_job, value_row
from celery_statemanager.stores.base import Store
from celery_statemanager.stores.capabilities import Outbox
from celery_statemanager.testing.contract_rerun import end_reset, rerun, reset
from celery_statemanager.testing.contract_returned import published
from celery_statemanager.testing.kit import FAILED, FINISHED, Grid, every_job, smoke

STAGES = ("success", "body-2", "body-3")


def with_body(job: JobRecord, stages: int = 3) -> JobRecord:
    """Return a job with a body and errbacks."""
    latches = {body_stage(number): Latch(f"stage {number}", is_body=True) for number in range(1, stages + 1)}
    return job.with_latches(**latches, **{ERRBACKS: Latch("errbacks")})


def create(store: Store, rows: int = 1) -> Grid:
    """Create a job with a body of three stages."""
    return Grid(store, store.create_job(with_body(new_job("job", rows, ("a",)))).ref)


def due(grid: Grid) -> list[str]:
    """Return the latches that are due. Check that sweeps find the job if there are any."""
    names = [name for name, latch in grid.job.latches.items() if latch.due]
    assert not names or [each.job_id for each in every_job(grid.store, due=True)] == ["job"]
    return names


def publish(grid: Grid, *names: str) -> list[str]:
    """Publish the callbacks of latches. Return the names of those that were published."""
    sent: list[str] = []

    def send(_: JobRecord, name: str, __: str) -> bool:
        sent.append(name)
        return True

    publish_due(grid.store, grid.ref, names, send)
    return sent


def end(grid: Grid, tag: str, *, calls_errbacks: bool = False) -> tuple[str, ...]:
    """Record the end of a callback."""
    return record_end(grid.store, grid.ref, tag, grid.cell(tag, CALLBACK_ROW), calls_errbacks=calls_errbacks)


class BodyContract:
    """Tests of the latches of a body."""

    @smoke
    def test_the_end_of_a_stage_makes_the_next_one_due_once(self, store: Store) -> None:
        grid = create(store)
        assert grid.job.body() == list(STAGES)
        assert grid.run("a", 0).decided == ("success", "settled")
        for stage, following in zip(STAGES, (*STAGES[1:], None)):
            assert due(grid) == [stage]
            assert publish(grid, stage) == [stage]
            assert due(grid) == []
            assert grid.job.latches[stage].place == Place(""), "its end is awaited although its queue is not known"
            assert grid.job.due
            grid.run(stage, CALLBACK_ROW)
            assert [end(grid, stage), end(grid, stage)] == [() if following is None else (following,), ()]
            assert grid.job.latches[stage].place is None
        assert list(every_job(store, due=True)) == []
        assert grid.job.latches[ERRBACKS].decided_at is None

    def test_a_stage_may_end_before_it_is_marked_as_published(self, store: Store) -> None:
        grid = create(store)
        grid.run("a", 0)
        grid.run("success", CALLBACK_ROW)
        assert end(grid, "success") == ("body-2",)
        assert publish(grid, "success") == []
        assert grid.job.latches["success"].place is None

    @smoke
    def test_errbacks_are_due_with_the_failure(self, store: Store) -> None:
        grid = create(store, rows=2)
        grid.run("a", 0, FAILED)
        assert grid.job.latches[ERRBACKS].decided_at == grid.job.latches["failure"].decided_at
        assert due(grid) == [ERRBACKS]
        assert publish(grid, "failure") == [ERRBACKS]
        grid.run("a", 1, FAILED)
        assert due(grid) == []
        assert list(every_job(store, due=True)) == []

    def test_a_failed_stage_is_followed_by_errbacks_only_if_celery_does_not_call_them(self, store: Store) -> None:
        for status, calls_errbacks in ((FAILED, False), (int(Status.LOST), True)):
            grid = create(store)
            grid.run("a", 0)
            publish(grid, "success")
            grid.run("success", CALLBACK_ROW, status)
            found = [end(grid, "success", calls_errbacks=calls_errbacks) for _ in range(2)]
            assert found == [(ERRBACKS,) if calls_errbacks else (), ()]
            assert due(grid) == [ERRBACKS] * calls_errbacks
            assert publish(grid, ERRBACKS) == [ERRBACKS] * calls_errbacks
            assert list(every_job(store, due=True)) == []
            grid.delete()

    def test_the_late_end_of_a_lost_stage_is_followed_by_the_next_one(self, store: Store) -> None:
        grid = create(store)
        grid.run("a", 0)
        publish(grid, "success")
        grid.run("success", CALLBACK_ROW, int(Status.LOST))
        end(grid, "success")
        grid.write("success", CALLBACK_ROW, FINISHED)
        assert end(grid, "success") == ("body-2",)

    @pytest.mark.parametrize("rows", [0, 1])
    def test_a_job_may_be_created_with_decided_latches(self, store: Store, rows: int) -> None:
        """A chord with an empty header has succeeded when it is created."""
        job, now = with_body(replace(new_job("job", 1), num_tasks=rows, plan=Plan(()))), store.now()
        decided = {name: replace(job.latches[name], decided_at=now) for name in ("success", "settled")}
        grid = Grid(store, store.create_job(job.with_latches(**decided)).ref)
        assert (grid.job.settled, due(grid)) == (True, ["success"])
        _, columns = store.column_summaries(grid.ref, indexes=True)
        assert columns == []
        assert publish(grid, "success", "settled") == ["success"]
        grid.run("success", CALLBACK_ROW)
        assert end(grid, "success") == ("body-2",)

    def test_each_generation_has_a_body_of_its_own(self, store: Outbox) -> None:
        grid = published(store, 2)
        grid.update(with_body)
        grid.run("a", 0)
        grid.run("a", 1, FAILED)
        publish(grid, "failure")
        rerun(grid, "1")
        assert grid.job.body(1) == []
        assert grid.job.latches[f"{ERRBACKS}.1"].published_at is not None
        assert grid.job.latches[ERRBACKS] == Latch("errbacks")
        reset(grid, "a", 1)
        end_reset(grid)
        assert "success" in grid.run("a", 1).decided
        assert grid.job.callback_tag("body-2") == "body-2.2"
        grid.run("success.2", CALLBACK_ROW)
        assert end(grid, "success.2") == ("body-2",)

    def test_a_body_that_has_begun_goes_on_after_a_rerun(self, store: Outbox) -> None:
        grid = published(store, 1)
        grid.update(with_body)
        grid.run("a", 0)
        publish(grid, "success")
        rerun(grid, "0")
        assert grid.job.body(1) == [f"{name}.1" for name in STAGES]
        grid.run("success", CALLBACK_ROW)
        assert end(grid, "success") == ("body-2.1",)
        assert due(grid) == ["body-2.1"]
        assert publish(grid, "body-2.1") == ["body-2.1"]
        grid.run("body-2", CALLBACK_ROW, int(Status.LOST))
        assert end(grid, "body-2", calls_errbacks=True) == (f"{ERRBACKS}.1",)
        assert grid.job.latches[ERRBACKS].decided_at is None

    def test_the_values_of_bodies_are_kept_by_generation(self, store: Outbox) -> None:
        grid = published(store, 40)
        for row in (0, 39):
            grid.run("a", row, value=f"row {row}")
        values = {
            tag: tag * size for tag, size in (("success", 1), ("body-2.2", 100), ("success.33", 1), ("body-2.34", 1))
        }
        for tag, value in values.items():
            grid.write(tag, CALLBACK_ROW, FINISHED, value=value)
        assert {tag: store.get_value(grid.ref, value_row(tag, CALLBACK_ROW)) for tag in values} == values
        grid.write("body-2", CALLBACK_ROW, FINISHED, value="x" * 300)
        assert store.get_value(grid.ref, CALLBACK_ROW) == "x" * 300
        assert dict(store.list_values(grid.ref, IndexSet(range(40)))) == {0: "row 0", 39: "row 39"}
        ref = grid.ref
        grid.delete()
        assert {store.get_value(ref, value_row(tag, CALLBACK_ROW)) for tag in values} == {None}
