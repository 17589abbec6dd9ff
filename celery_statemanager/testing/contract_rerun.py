"""Generations of a job: rows that are reset, and the latches of each generation (rule R20)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from celery_statemanager.errors import AttemptSuperseded, JobCancelled, JobNotFound
from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import Status
from celery_statemanager.records import (
    CALLBACK_ROW,
    Claimed,
    ClaimRequest,
    Delivery,
    Flow,
    Generation,
    Latch,
    Reset,
    Returned,
    Tally,
    Verdict,
    When,
    Write,
)
from celery_statemanager.stores.capabilities import Outbox
from celery_statemanager.testing.contract_outbox import claim, create, rows, state
from celery_statemanager.testing.contract_returned import published
from celery_statemanager.testing.kit import CANCELLED, FAILED, FINISHED, Grid, smoke

AGAIN = Delivery(1)
"""The first delivery of a row that was reset once."""


def failures(grid: Grid) -> int:
    """Return how often rows of a job have failed."""
    columns = grid.store.column_summaries(grid.ref)[1]
    total = Tally()
    for column in columns:
        total = total.plus(column.tally)
    return total.failures


def rerun(grid: Grid, chosen: str) -> tuple[str, ...]:
    """Begin a new generation in which some rows run again. Return the latches that this decided."""
    return grid.update(lambda job: job.with_generation(rows(chosen), failures(grid)))


def end_reset(grid: Grid) -> tuple[str, ...]:
    """Record that all rows are reset. Return the latches that this decided."""
    return grid.update(lambda job: replace(job, generation=replace(job.generation, rows_to_reset=IndexSet())))


def reset(grid: Grid, tag: str, row: int) -> bool:
    """Reset a row from a stage on."""
    assert isinstance(grid.store, Outbox)
    return grid.store.reset_row(grid.ref, Reset(tag=tag, task_index=row, generation=grid.job.generation.number))


def settle(grid: Grid, failing: int = 1) -> None:
    """Run the rows of a job with one stage; the first ones fail."""
    for row in range(grid.job.num_tasks):
        grid.run("a", row, FAILED if row < failing else FINISHED)


class RerunContract:
    """Tests of generations."""

    @smoke
    def test_a_row_that_failed_runs_again(self, store: Outbox) -> None:
        grid = published(store)
        grid.begin("a", 1, owner="w", delivery=Delivery(0, 2, 3), kept='{"m":1}')
        grid.write("a", 1, 40, payload='{"page":3}', attempt=1)
        grid.end("a", 1, FAILED, message="no disk", keep_payload=True, counts_as_loss=True)
        before = grid.cell("a", 1)
        rerun(grid, "1")
        assert reset(grid, "a", 1)
        cell = grid.cell("a", 1)
        assert (cell.status, cell.message, cell.payload, cell.open) == (0, None, '{"page":3}', False)
        assert (cell.version, cell.attempt, cell.losses, cell.kept) == (before.version + 1, 1, 0, None)
        assert (cell.delivery, cell.generation, cell.failures) == (AGAIN, 2, 1)
        assert state(grid).returned == Returned(waiting=rows("1"))
        assert claim(grid, "p") == Claimed(rows("1"), rows("1"), 0)
        assert grid.begin("a", 1, owner="w", delivery=Delivery(0, 9, 9)).verdict is Verdict.STALE
        begun = grid.begin("a", 1, owner="w", delivery=AGAIN)
        assert (begun.verdict, begun.cell.attempt, begun.cell.generation) == (Verdict.BEGUN, 2, 2)
        assert grid.end("a", 1).cell.status == FINISHED

    def test_a_row_is_reset_once_in_each_generation(self, store: Outbox) -> None:
        grid = published(store)
        settle(grid)
        rerun(grid, "0")
        assert reset(grid, "a", 0)
        version = grid.cell("a", 0).version
        assert not reset(grid, "a", 0)
        grid.begin("a", 0, delivery=AGAIN)
        grid.end("a", 0, FAILED)
        assert not reset(grid, "a", 0)
        assert grid.cell("a", 0).version == version + 2
        end_reset(grid)
        rerun(grid, "0")
        assert reset(grid, "a", 0)
        assert grid.cell("a", 0).generation == 3

    def test_a_row_that_has_finished_or_runs_is_not_reset(self, store: Outbox) -> None:
        grid = published(store)
        grid.run("a", 0)
        grid.begin("a", 1, owner="w")
        grid.begin("a", 2, owner="w")
        grid.store.write(grid.ref, Write.returned("a", 2, "retry", Delivery(0, 0, 1), attempt=1))
        rerun(grid, "0-2")
        before = [grid.cell("a", row) for row in range(3)]
        assert not any(reset(grid, "a", row) for row in range(3))
        assert [grid.cell("a", row) for row in range(3)] == before
        assert state(grid).returned == Returned()

    def test_a_late_end_of_an_attempt_that_was_reset_is_refused(self, store: Outbox) -> None:
        grid = published(store)
        grid.begin("a", 0, owner="w")
        store.write(grid.ref, Write.lost("a", 0, "lost", attempt=1))
        rerun(grid, "0")
        assert reset(grid, "a", 0)
        with pytest.raises(AttemptSuperseded):
            store.write(grid.ref, Write.ending("a", 0, FINISHED, attempt=1))
        assert grid.cell("a", 0).status == 0

    def test_a_late_end_before_the_reset_counts(self, store: Outbox) -> None:
        grid = published(store)
        grid.begin("a", 0, owner="w")
        store.write(grid.ref, Write.lost("a", 0, "lost", attempt=1))
        rerun(grid, "0")
        store.write(grid.ref, Write.ending("a", 0, FINISHED, attempt=1))
        assert not reset(grid, "a", 0)
        assert grid.cell("a", 0).status == FINISHED

    @smoke
    def test_a_chain_is_reset_from_the_stage_that_failed(self, store: Outbox) -> None:
        grid = published(store, tags=("a", "b", "c"))
        grid.run("a", 0)
        grid.run("b", 0, FAILED)
        assert grid.cell("c", 0).blocked_by == "b"
        rerun(grid, "0")
        assert reset(grid, "b", 0)
        cells = [grid.cell(tag, 0) for tag in ("a", "b", "c")]
        assert [(cell.status, cell.generation) for cell in cells] == [(FINISHED, 1), (0, 2), (0, 2)]
        assert cells[2].blocked_by is None
        assert state(grid).returned == Returned(begun=rows("0"))
        assert not reset(grid, "b", 0)

    def test_a_chain_is_reset_from_its_first_stage(self, store: Outbox) -> None:
        grid = published(store, tags=("a", "b"))
        grid.run("a", 0)
        grid.run("b", 0, FAILED)
        rerun(grid, "0")
        assert reset(grid, "a", 0)
        cells = [grid.cell(tag, 0) for tag in ("a", "b")]
        assert [(cell.status, cell.generation, cell.delivery) for cell in cells] == [(0, 2, AGAIN)] * 2
        assert state(grid).returned == Returned(waiting=rows("0"))

    def test_a_chain_whose_last_stage_runs_or_has_finished_is_not_reset(self, store: Outbox) -> None:
        grid = published(store, tags=("a", "b"))
        for row in (0, 1):
            grid.run("a", row)
            grid.run("b", row, FINISHED if row else FAILED)
        grid.begin("b", 0, delivery=AGAIN)
        rerun(grid, "0-1")
        assert not reset(grid, "a", 0)
        assert not reset(grid, "a", 1)
        assert (grid.cell("a", 0).status, grid.cell("a", 1).status) == (FINISHED, FINISHED)

    @smoke
    def test_no_latch_is_decided_until_all_rows_are_reset(self, store: Outbox) -> None:
        grid = published(store)
        settle(grid)
        assert grid.decided == {"failure", "settled"}
        assert rerun(grid, "0") == ()
        assert grid.decided == set()
        reset(grid, "a", 0)
        grid.begin("a", 0, delivery=AGAIN)
        assert grid.end("a", 0).decided == ()
        assert set(end_reset(grid)) == {"success", "settled"}
        assert grid.job.generation == Generation(2, 1)

    @smoke
    def test_a_failure_before_the_generation_does_not_count_in_it(self, store: Outbox) -> None:
        grid = published(store)
        settle(grid, failing=2)
        rerun(grid, "0")
        reset(grid, "a", 0)
        assert end_reset(grid) == ()
        grid.begin("a", 0, delivery=AGAIN)
        assert grid.end("a", 0).decided == ("settled",)

    def test_a_failure_in_the_generation_counts(self, store: Outbox) -> None:
        grid = published(store)
        settle(grid, failing=2)
        rerun(grid, "0-1")
        reset(grid, "a", 0)
        reset(grid, "a", 1)
        end_reset(grid)
        grid.begin("a", 1, delivery=AGAIN)
        assert grid.end("a", 1, FAILED).decided == ("failure",)
        grid.begin("a", 0, delivery=AGAIN)
        assert grid.end("a", 0).decided == ("settled",)

    def test_a_failure_while_rows_are_reset_counts_afterwards(self, store: Outbox) -> None:
        grid = published(store)
        grid.run("a", 0, FAILED)
        rerun(grid, "0")
        assert grid.run("a", 1, FAILED).decided == ()
        reset(grid, "a", 0)
        assert end_reset(grid) == ("failure",)

    def test_an_interrupted_reset_is_due(self, store: Outbox) -> None:
        grid = published(store)
        settle(grid, failing=0)
        assert list(store.list_jobs(due=True).jobs) == []
        rerun(grid, "0")
        (found,) = store.list_jobs(due=True).jobs
        assert found.generation.rows_to_reset == rows("0")

    def test_the_callbacks_of_an_earlier_generation_stay(self, store: Outbox) -> None:
        grid = Grid.submitted(store, 2, failure="f", settled="s")
        settle(grid)
        decided_at = grid.job.latches["failure"].decided_at
        grid.begin("failure", CALLBACK_ROW, owner="w")
        rerun(grid, "0")
        job = grid.job
        assert job.latches["failure.1"] == Latch("f", decided_at)
        assert job.latches["failure"] == Latch("f")
        assert set(job.latches) == {"success", "failure", "settled", "failure.1", "settled.1"}
        assert (job.callback_tag("failure.1"), job.callback_tag("failure")) == ("failure", "failure.2")
        assert (job.latch_of("failure"), job.latch_of("failure.2")) == ("failure.1", "failure")
        assert job.due
        grid.end("failure", CALLBACK_ROW)
        assert grid.begin("failure.2", CALLBACK_ROW, owner="w").verdict is Verdict.BEGUN

    def test_rows_of_a_cancelled_job_run_again(self, store: Outbox) -> None:
        grid = create(store, 4, ("a", "b"), 2)
        claim(grid, "p")
        grid.run("a", 0)
        grid.cancel()
        dropped = store.claim(grid.ref, ClaimRequest(publisher="p", limit=0, drop_unclaimed=True))
        assert (dropped.rows, dropped.left) == (IndexSet(), 0)
        for row in (2, 3):
            store.write(grid.ref, Write.never_begun("a", row, CANCELLED, "user asked"))
        rerun(grid, "0-1")
        assert grid.job.cancelled is None
        assert reset(grid, "b", 0)
        assert reset(grid, "a", 1)
        assert state(grid).returned == Returned(begun=rows("0"), waiting=rows("1"))
        assert [grid.cell("b", row).generation for row in (0, 1)] == [2, 2]
        assert claim(grid, "p").rows == rows("0-1")
        assert grid.begin("a", 1, delivery=AGAIN).verdict is Verdict.BEGUN

    def test_only_a_cancelled_job_drops_the_rest(self, store: Outbox) -> None:
        grid = Grid.submitted(store, 4, published=1)
        found = store.claim(grid.ref, ClaimRequest(publisher="p", limit=0, drop_unclaimed=True))
        assert (found.rows, found.left) == (IndexSet(), 3)

    def test_a_row_that_is_not_chosen_stays_cancelled(self, store: Outbox) -> None:
        grid = published(store, tags=("a", "b"))
        grid.cancel("user asked")
        with pytest.raises(JobCancelled):
            grid.write("a", 2, FAILED, when=When.IDLE)
        left = store.write(grid.ref, Write.never_begun("a", 2, CANCELLED, "user asked"))
        assert (left.cell.status, left.cell.message, left.cell.failures) == (CANCELLED, "user asked", 0)
        assert grid.cell("b", 2).status == CANCELLED
        rerun(grid, "1")
        assert grid.state("a", 2).status == CANCELLED
        assert grid.state("a", 1).status == Status.NOT_STARTED

    def test_a_job_that_is_cancelled_meanwhile_resets_nothing(self, store: Outbox) -> None:
        grid = published(store)
        settle(grid)
        rerun(grid, "0")
        grid.cancel()
        assert not reset(grid, "a", 0)
        assert grid.cell("a", 0).status == FAILED
        assert end_reset(grid) == ("settled",)

    def test_a_window_counts_rows_that_run_again(self, store: Outbox) -> None:
        grid = create(store, 4, ("a",), 2)
        for _ in range(2):
            claim(grid, "p")
            for row in range(4):
                if row in state(grid).claims["p"].rows:
                    grid.run("a", row, FAILED)
        rerun(grid, "0-3")
        for row in range(4):
            reset(grid, "a", row)
        assert claim(grid, "p") == Claimed(rows("0-1"), rows("0-1"), 0)
        assert claim(grid, "q").rows == IndexSet()
        grid.begin("a", 0, delivery=AGAIN)
        assert grid.end("a", 0, publisher="p").claimed == rows("2")

    def test_a_paused_job_holds_back_rows_that_run_again(self, store: Outbox) -> None:
        grid = published(store)
        settle(grid)
        grid.update(lambda job: replace(job, flow=Flow(paused=True)))
        rerun(grid, "0")
        reset(grid, "a", 0)
        assert claim(grid, "p").rows == IndexSet()
        assert grid.begin("a", 0, delivery=AGAIN, may_wait=True).verdict is Verdict.PAUSED

    def test_a_summary_names_the_generation(self, store: Outbox) -> None:
        grid = published(store)
        settle(grid)
        assert grid.manager().summary().generation == 1
        rerun(grid, "0")
        assert grid.manager().summary().generation == 2

    def test_failures_add_up(self, store: Outbox) -> None:
        grid = published(store, tags=("a", "b"))
        grid.run("a", 0, FAILED)
        grid.run("a", 1)
        grid.run("b", 1, FAILED)
        grid.begin("a", 2, owner="w")
        store.write(grid.ref, Write.lost("a", 2, "lost", attempt=1))
        store.write(grid.ref, Write.ending("a", 2, FINISHED, attempt=1))
        assert failures(grid) == 3  # a later stage that did not run is no failure; one that was presumed stays one
        grid.cancel()
        grid.run("a", 3, CANCELLED)
        assert failures(grid) == 3

    def test_only_a_cancelled_job_accepts_the_end_of_a_row_that_never_began_as_cancelled(self, store: Outbox) -> None:
        grid = published(store)
        with pytest.raises(AttemptSuperseded):
            store.write(grid.ref, Write.never_begun("a", 0, CANCELLED, "user asked"))
        assert grid.cell("a", 0).version == 0

    def test_the_message_of_a_row_that_stays_cancelled_does_not_begin(self, store: Outbox) -> None:
        grid = published(store)
        grid.cancel()
        left = Write.never_begun("a", 0, CANCELLED, "user asked")
        left.next_delivery = AGAIN
        store.write(grid.ref, left)
        rerun(grid, "1")
        assert grid.begin("a", 0, owner="w").verdict is Verdict.STALE

    def test_an_earlier_message_that_never_began_does_not_end_the_row(self, store: Outbox) -> None:
        grid = published(store)
        settle(grid)
        rerun(grid, "0")
        reset(grid, "a", 0)
        with pytest.raises(AttemptSuperseded):
            store.write(grid.ref, Write.never_begun("a", 0, FAILED, "revoked", delivery=Delivery()))
        ended = store.write(grid.ref, Write.never_begun("a", 0, FAILED, "revoked", delivery=AGAIN))
        assert ended.cell.status == FAILED

    @pytest.mark.parametrize("settled", [True, False])
    def test_a_message_that_was_taken_for_lost_begins_in_its_generation(self, store: Outbox, settled: bool) -> None:
        grid = published(store)
        settle(grid, failing=1 if settled else 2)
        rerun(grid, "0" if settled else "0-1")
        for row in range(1 if settled else 2):
            assert reset(grid, "a", row)
        end_reset(grid)
        store.write(grid.ref, Write.lost("a", 0, "its message was lost"))
        assert grid.job.settled is settled
        begun = grid.begin("a", 0, owner="w", delivery=AGAIN)
        assert (begun.verdict, begun.cell.attempt) == (Verdict.BEGUN, 2)
        assert grid.begin("a", 0, owner="v", delivery=AGAIN).verdict is Verdict.DUPLICATE
        assert grid.end("a", 0).cell.status == FINISHED

    @pytest.mark.parametrize("late", [True, False])
    def test_a_delivery_that_has_ended_its_row_does_not_begin_again(self, store: Outbox, late: bool) -> None:
        grid = published(store)
        settle(grid, failing=2)
        rerun(grid, "0-1")
        for row in range(2):
            assert reset(grid, "a", row)
        end_reset(grid)
        grid.begin("a", 0, owner="w", delivery=AGAIN)
        if late:
            store.write(grid.ref, Write.lost("a", 0, "lost", attempt=2))
            assert grid.begin("a", 0, owner="v", delivery=AGAIN).verdict is Verdict.CLOSED
        store.write(grid.ref, Write.ending("a", 0, FAILED, attempt=2))
        assert grid.begin("a", 0, owner="v", delivery=AGAIN).verdict is Verdict.CLOSED

    def test_a_row_of_which_a_later_stage_was_reset_is_not_reset_again(self, store: Outbox) -> None:
        grid = published(store, tags=("a", "b"))
        grid.run("a", 0)
        grid.run("b", 0, FAILED)
        rerun(grid, "0")
        assert reset(grid, "b", 0)
        assert not reset(grid, "a", 0)

    def test_nothing_is_reset_after_the_end_of_the_resets(self, store: Outbox) -> None:
        grid = published(store)
        settle(grid)
        rerun(grid, "0")
        end_reset(grid)
        assert not reset(grid, "a", 0)
        rerun(grid, "0")
        assert not store.reset_row(grid.ref, Reset(tag="a", task_index=0, generation=2))
        assert reset(grid, "a", 0)

    def test_a_deleted_job_resets_nothing(self, store: Outbox) -> None:
        grid = published(store)
        settle(grid)
        grid.delete()
        with pytest.raises(JobNotFound):
            store.reset_row(grid.ref, Reset(tag="a", task_index=0, generation=2))
