"""Cancelled jobs: the states of their cells, the writes that they accept, when they settle (rule R17)."""

from __future__ import annotations

import pytest

from celery_statemanager.errors import JobCancelled
from celery_statemanager.models import State, Status
from celery_statemanager.records import CALLBACK_ROW, Delivery, Verdict, When
from celery_statemanager.stores.base import Store
from celery_statemanager.testing.kit import CANCELLED, FAILED, FINISHED, Grid, smoke

REASON = "user asked"


class CancelContract:
    """Tests of cancelled jobs."""

    def test_cells_that_never_began_read_as_cancelled_with_the_reason(self, store: Store) -> None:
        grid = Grid.create(store, 3, ("a", "b"))
        grid.run("a", 0)
        grid.begin("a", 1)
        grid.cancel(REASON)
        gone = State("job", 2, "a", CANCELLED, REASON)
        assert grid.state("a", 2) == gone
        assert grid.lowest("a") == gone
        assert grid.lowest(row=2) == gone
        assert grid.lowest() == State("job", 0, "b", CANCELLED, REASON)
        assert grid.lowest("unseen", 1).status == grid.lowest("unseen").status == CANCELLED
        assert [grid.state("a", row).status for row in (0, 1)] == [FINISHED, 1]

    def test_the_summary_of_a_cancelled_job_counts_cells_that_never_began_as_failed(self, store: Store) -> None:
        grid = Grid.create(store, 5, ("a", "b"))
        grid.run("a", 0)
        grid.begin("a", 1)
        grid.write("a", 2, 0)
        grid.cancel(REASON)
        summary = grid.manager().summary("a")
        assert (summary.not_started, summary.running, summary.finished, summary.failed) == (0, 1, 1, 3)
        assert (str(summary.failed_indexes), str(summary.running_indexes), str(summary.missing_indexes)) == (
            "2-4",
            "1",
            "",
        )
        assert (summary.lowest.status, summary.lowest.message, summary.lowest.task_index) == (CANCELLED, REASON, 2)
        whole = grid.manager().summary(indexes=False)
        assert (whole.expected, whole.failed, whole.lowest.status) == (10, 8, CANCELLED)

    def test_a_cell_written_as_not_started_reads_as_cancelled(self, store: Store) -> None:
        grid = Grid.create(store, 3, ("a",))
        kept = grid.write("a", 0, 0, message="queued", payload='{"n":1}').cell
        grid.begin("a", 1)
        grid.cancel(REASON)
        state = grid.state("a", 0)
        assert (state.status, state.message) == (CANCELLED, REASON)
        assert (state.version, state.event_id, state.payload) == (1, kept.event_id, {"n": 1})
        assert state.timestamp is not None
        assert grid.states() == [state, grid.state("a", 1)]
        assert grid.lowest() == grid.lowest("a") == grid.lowest(row=0) == state
        with grid.manager().subscribe() as events:
            assert [next(events).state for _ in range(2)] == grid.states()

    def test_only_a_status_below_cancelled_stays_the_lowest(self, store: Store) -> None:
        grid = Grid.create(store, 4, ("a",))
        grid.run("a", 3, FAILED)
        grid.cancel()
        assert (grid.lowest().status, grid.lowest().task_index) == (CANCELLED, 0)
        other = Grid.create(store, 4, ("a",), job_id="other")
        other.run("a", 3, -8)
        other.cancel()
        assert (other.lowest().status, other.lowest().task_index) == (-8, 3)

    def test_an_attempt_closed_as_not_started_reads_as_cancelled(self, store: Store) -> None:
        grid = Grid.create(store, 3, ("a",))
        grid.run("a", 0, FAILED)
        grid.run("a", 1, FAILED)
        grid.begin("a", 2)
        grid.write("a", 2, 0, attempt=1)
        grid.cancel()
        assert grid.lowest().status == FAILED
        reply = grid.write("a", 2, 0, attempt=1, ends_attempt=True)
        assert set(reply.decided) == {"settled"}
        assert grid.state("a", 2).status == CANCELLED
        assert (grid.lowest().status, grid.lowest().task_index) == (CANCELLED, 2)

    def test_a_cancelled_job_refuses_begins(self, store: Store) -> None:
        grid = Grid.create(store, 3, ("a",))
        grid.begin("a", 1)
        grid.run("a", 2, FAILED)
        grid.cancel(REASON)
        assert grid.begin("a", 0).verdict is Verdict.CANCELLED
        assert grid.cell("a", 0).version == 0
        for row, fields in ((1, {"delivery": Delivery(0, 9, 9)}), (1, {"takes_over": True}), (2, {})):
            cell = grid.cell("a", row)
            reply = grid.begin("a", row, **fields)
            assert (reply.verdict, reply.cell) == (Verdict.CANCELLED, cell)
            assert grid.cell("a", row) == cell
        with pytest.raises(JobCancelled, match=REASON):
            grid.manager(0).begin("a")

    def test_a_begin_of_a_finished_cell_returns_finished_after_cancellation(self, store: Store) -> None:
        grid = Grid.create(store, 2, ("a",))
        grid.run("a", 0)
        grid.begin("a", 1)
        grid.cancel()
        assert grid.begin("a", 0).verdict is Verdict.FINISHED

    def test_a_retry_that_begins_after_the_cancellation_ends_its_cell(self, store: Store) -> None:
        grid = Grid.create(store, 2, ("a",))
        grid.begin("a", 0, kept="msg")
        grid.write("a", 0, 1, attempt=1, ends_attempt=True, next_delivery=Delivery(0, 0, 1))
        assert grid.cancel(REASON) == ()
        reply = grid.begin("a", 0, delivery=Delivery(0, 0, 1))
        assert (reply.verdict, reply.decided) == (Verdict.CANCELLED, ("settled",))
        cell = grid.cell("a", 0)
        assert (cell.status, cell.message, cell.version, cell.final) == (CANCELLED, REASON, 3, True)
        assert (cell.kept, cell.attempt) == (None, 1)

    def test_the_next_write_of_a_running_task_raises_job_cancelled(self, store: Store) -> None:
        manager = Grid.create(store, 2, ("a",)).manager(0)
        grid = Grid(store, manager.ref)
        manager.begin("a")
        grid.cancel(REASON)
        for write in (
            lambda: manager.set_state("a", 50),
            lambda: manager.progress("a", 1, 2),
            lambda: grid.write("a", 0, 0),
        ):
            with pytest.raises(JobCancelled) as refused:
                write()
            assert refused.value.reason == REASON
        assert grid.cell("a", 0).version == 1

    @pytest.mark.parametrize("status", [FINISHED, CANCELLED, FAILED])
    def test_a_running_task_may_end_with_any_terminal_status(self, store: Store, status: int) -> None:
        grid = Grid.create(store, 1, ("a",))
        grid.begin("a", 0)
        assert grid.cancel() == ()
        reply = grid.end("a", 0, status)
        assert reply.cell.status == status
        assert "settled" in reply.decided

    def test_after_cancellation_only_cells_in_progress_accept_a_terminal_status(self, store: Store) -> None:
        grid = Grid.create(store, 3, ("a",))
        grid.write("a", 0, 50)
        grid.write("a", 1, 0)
        grid.begin("a", 2)
        grid.cancel(REASON)
        assert grid.write("a", 0, FINISHED).cell.status == FINISHED
        for row, status in ((1, FINISHED), (1, FAILED), (1, 5), (0, 5), (0, 0)):
            with pytest.raises(JobCancelled):
                grid.write("a", row, status)
        with pytest.raises(JobCancelled):
            grid.write("new", 0, FINISHED)
        assert grid.write("a", 0, FAILED).cell.status == FAILED

    def test_a_write_about_a_waiting_message_ends_its_cell_as_cancelled(self, store: Store) -> None:
        grid = Grid.create(store, 2, ("a",))
        grid.begin("a", 0)
        grid.write("a", 0, 1, attempt=1, ends_attempt=True, next_delivery=Delivery(0, 0, 1))
        grid.cancel(REASON)
        reply = grid.write("a", 0, int(Status.REVOKED), when=When.IDLE, message="revoked")
        assert (reply.cell.status, reply.cell.message, reply.decided) == (CANCELLED, REASON, ("settled",))

    def test_callbacks_of_a_cancelled_job_run(self, store: Store) -> None:
        grid = Grid.create(store, 1, ("a",))
        assert grid.cancel() == ("settled",)
        assert grid.begin("settled", CALLBACK_ROW).verdict is Verdict.BEGUN
        grid.write("settled", CALLBACK_ROW, 50, attempt=1)
        assert grid.end("settled", CALLBACK_ROW).cell.status == FINISHED

    def test_a_cancelled_job_settles_at_once_if_nothing_is_pending(self, store: Store) -> None:
        grid = Grid.create(store, 3, ("a", "b"))
        grid.run("a", 0)
        assert grid.cancel() == ("settled",)
        assert grid.begin("a", 1).verdict is Verdict.CLOSED
        assert grid.decided == {"settled"}

    @smoke
    def test_a_cancelled_job_settles_with_the_end_of_the_last_pending_cell(self, store: Store) -> None:
        grid = Grid.create(store, 4, ("a",))
        grid.begin("a", 0)
        grid.write("a", 1, 50)
        grid.begin("a", 2)
        grid.write("a", 2, FINISHED, attempt=1)
        assert grid.cancel() == ()
        assert grid.end("a", 0).decided == ()
        assert grid.write("a", 1, CANCELLED).decided == ()
        assert grid.end("a", 2, CANCELLED).decided == ("settled",)
        assert grid.decided == {"settled"}

    def test_unplanned_work_does_not_delay_the_settling_of_a_cancelled_job(self, store: Store) -> None:
        grid = Grid.create(store, 2, {"a": [0, 1], "b": [0]})
        grid.begin("other", 0)
        grid.begin("b", 1)
        assert grid.cancel() == ("settled",)

    def test_the_stages_after_a_cancelled_stage_read_as_cancelled(self, store: Store) -> None:
        grid = Grid.create(store, 1, ("a", "b"))
        grid.begin("a", 0)
        grid.cancel(REASON)
        grid.end("a", 0, CANCELLED, message=REASON)
        assert [grid.state(tag, 0).status for tag in "ab"] == [CANCELLED, CANCELLED]
        assert grid.decided == {"settled"}

    def test_a_cancelled_job_without_a_plan_decides_no_latches(self, store: Store) -> None:
        grid = Grid.create(store, 2)
        grid.write("a", 0, 5)
        assert grid.cancel() == ()
        assert (grid.state("a", 1).status, grid.lowest("a").status) == (CANCELLED, CANCELLED)
        assert grid.decided == set()

    def test_cancelling_a_job_of_ten_million_rows_settles_it_at_once(self, store: Store) -> None:
        grid = Grid.create(store, 10_000_000, ("a", "b"))
        assert grid.cancel() == ("settled",)
        assert grid.manager().summary(indexes=False).failed == 20_000_000
        assert len(grid.manager().summary().failed_indexes or ()) == 10_000_000
