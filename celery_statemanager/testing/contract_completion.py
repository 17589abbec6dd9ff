"""The three latches and the publication of their callbacks (rule R15)."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from celery_statemanager.completion import make_due, publish_due, record_end
from celery_statemanager.models import Status
from celery_statemanager.records import CALLBACK_ROW, LATCHES, Delivery, JobRecord, Place, Verdict, When
from celery_statemanager.stores.base import Store
from celery_statemanager.testing.kit import CANCELLED, FAILED, FINISHED, Grid, every_job, smoke

SEEDS = range(8)


class CompletionContract:
    """Tests of latches and their callbacks."""

    @smoke
    def test_the_last_planned_cell_decides_success_and_settled(self, store: Store) -> None:
        grid = Grid.create(store, 2, ("a", "b"))
        before = store.now()
        for tag, row in (("a", 0), ("b", 0), ("b", 1)):
            assert grid.run(tag, row).decided == ()
        reply = grid.run("a", 1)
        assert set(reply.decided) == {"success", "settled"}
        job = grid.job
        assert before <= (job.latches["success"].decided_at or 0) <= store.now()
        assert job.settled
        assert job.latches["failure"].decided_at is None

    def test_terminal_writes_without_an_attempt_decide_latches(self, store: Store) -> None:
        grid = Grid.create(store, 2, ("a",))
        assert grid.manager(0).set_state("a", FINISHED).finished
        assert set(grid.write("a", 1, FINISHED).decided) == {"success", "settled"}

    def test_a_terminal_status_counts_only_after_its_attempt_is_closed(self, store: Store) -> None:
        grid = Grid.create(store, 1, ("a",))
        grid.begin("a", 0)
        for status in (FINISHED, FAILED, FINISHED):
            assert grid.write("a", 0, status, attempt=1).decided == ()
        assert grid.decided == set()
        assert set(grid.end("a", 0).decided) == {"success", "settled"}

    def test_the_first_final_negative_cell_decides_failure(self, store: Store) -> None:
        grid = Grid.create(store, 3, ("a",))
        assert grid.run("a", 0, -42).decided == ("failure",)
        assert grid.run("a", 1, FAILED).decided == ()
        assert grid.run("a", 2).decided == ("settled",)
        assert grid.decided == {"failure", "settled"}

    def test_success_may_be_decided_after_a_failed_cell_recovers(self, store: Store) -> None:
        grid = Grid.create(store, 2, ("a",))
        assert grid.run("a", 0, FAILED).decided == ("failure",)
        decided_at = grid.job.latches["failure"].decided_at
        assert grid.begin("a", 0).verdict is Verdict.BEGUN
        assert grid.end("a", 0).decided == ()
        assert set(grid.run("a", 1).decided) == {"success", "settled"}
        assert grid.decided == set(LATCHES)
        assert grid.job.latches["failure"].decided_at == decided_at

    def test_a_cell_that_fails_again_decides_no_latch(self, store: Store) -> None:
        grid = Grid.create(store, 2, ("a",))
        grid.run("a", 0, FAILED)
        grid.begin("a", 0)
        assert grid.end("a", 0, FAILED).decided == ()

    def test_cancelled_cells_do_not_decide_failure(self, store: Store) -> None:
        grid = Grid.create(store, 2, ("a",))
        assert grid.run("a", 0, CANCELLED).decided == ()
        assert grid.run("a", 1).decided == ("settled",)

    def test_a_settled_job_refuses_later_deliveries(self, store: Store) -> None:
        grid = Grid.create(store, 2, ("a",))
        grid.run("a", 0, FAILED)
        grid.run("a", 1)
        cell = grid.cell("a", 0)
        for fields in ({"delivery": Delivery(0, 9, 9)}, {"takes_over": True}, {"supersedes": 1}):
            reply = grid.begin("a", 0, **fields)
            assert (reply.verdict, reply.cell) == (Verdict.CLOSED, cell)
        assert grid.begin("a", 1).verdict is Verdict.FINISHED
        assert grid.begin("unplanned", 0).verdict is Verdict.CLOSED

    def test_a_settled_job_takes_a_row_that_was_marked_as_lost_and_never_began(self, store: Store) -> None:
        grid = Grid.create(store, 2, ("a", "b"))
        for tag in ("a", "b"):
            grid.run(tag, 1)
        grid.write("a", 0, int(Status.LOST), when=When.IDLE, block_later_stages=True)
        assert grid.decided == {"failure", "settled"}
        assert grid.begin("b", 0).verdict is Verdict.CLOSED
        assert grid.begin("a", 0).verdict is Verdict.BEGUN
        grid.write("a", 0, 1, attempt=1, ends_attempt=True, next_delivery=Delivery(0, 0, 1))
        assert grid.begin("a", 0, delivery=Delivery(0, 0, 1)).verdict is Verdict.BEGUN
        assert grid.end("a", 0).decided == ()
        assert grid.run("b", 0).decided == ("success",)
        assert grid.begin("a", 0).verdict is Verdict.FINISHED

    def test_a_settled_job_takes_no_row_that_began_and_was_lost(self, store: Store) -> None:
        grid = Grid.create(store, 1, ("a",))
        grid.run("a", 0, int(Status.LOST))
        assert grid.begin("a", 0).verdict is Verdict.CLOSED

    def test_a_cancelled_job_takes_no_row_that_never_began(self, store: Store) -> None:
        grid = Grid.create(store, 2, ("a",))
        grid.write("a", 0, int(Status.LOST), when=When.IDLE)
        grid.cancel("enough")
        assert grid.begin("a", 0).verdict is Verdict.CLOSED
        assert grid.begin("a", 1).verdict is Verdict.CLOSED

    def test_callbacks_of_a_settled_job_begin(self, store: Store) -> None:
        grid = Grid.create(store, 1, ("a",))
        grid.run("a", 0)
        assert grid.begin("success", CALLBACK_ROW).verdict is Verdict.BEGUN
        assert grid.begin("success", CALLBACK_ROW).verdict is Verdict.DUPLICATE
        grid.end("success", CALLBACK_ROW)
        assert grid.begin("success", CALLBACK_ROW).verdict is Verdict.FINISHED

    def test_writes_after_settling_do_not_decide_a_latch_twice(self, store: Store) -> None:
        grid = Grid.create(store, 1, ("a",))
        grid.run("a", 0)
        before = grid.job.latches
        decided = [name for status in (5, FINISHED, FAILED) * 2 for name in grid.write("a", 0, status).decided]
        assert decided in ([], ["failure"])
        after = grid.job.latches
        assert (after["success"], after["settled"]) == (before["success"], before["settled"])

    def test_unplanned_tags_and_rows_decide_no_latch(self, store: Store) -> None:
        grid = Grid.create(store, 2, {"a": [0, 1], "b": [0]})
        for tag, row, status in (("other", 0, FAILED), ("b", 1, FAILED), ("a", 0, FINISHED), ("other", 1, FINISHED)):
            assert grid.run(tag, row, status).decided == ()
        grid.run("b", 0)
        assert set(grid.run("a", 1).decided) == {"success", "settled"}

    def test_callback_runs_do_not_count_and_are_invisible_to_readers_of_the_grid(self, store: Store) -> None:
        grid = Grid.create(store, 1, ("a",))
        grid.run("a", CALLBACK_ROW, FAILED)
        grid.run("failure", CALLBACK_ROW)
        assert grid.decided == set()
        assert grid.states() == []
        assert (grid.lowest().status, grid.lowest("a").status, grid.lowest("failure").status) == (0, 0, 0)
        summary = grid.manager().summary()
        assert (summary.expected, summary.failed, summary.finished) == (1, 0, 0)
        free = Grid.create(store, 2, job_id="free")
        free.run("settled", CALLBACK_ROW)
        assert free.manager().summary().expected == 0
        with free.manager().subscribe() as events:
            free.run("x", CALLBACK_ROW)
            free.write("a", 0, 5)
            assert next(events).state.tag == "a"

    def test_a_job_without_a_plan_decides_no_latches(self, store: Store) -> None:
        grid = Grid.create(store, 1)
        assert grid.run("a", 0, FAILED).decided == ()
        assert grid.run("a", 0).decided == ()
        assert grid.decided == set()

    def test_blocked_cells_count_as_ended(self, store: Store) -> None:
        grid = Grid.create(store, 1, ("a", "b", "c"))
        assert set(grid.run("a", 0, FAILED).decided) == {"failure", "settled"}

    def test_the_callback_of_a_decided_latch_is_due_until_it_is_marked_as_published(self, store: Store) -> None:
        grid = Grid.create(store, 1, ("a",), success="call me", failure="never")
        assert not grid.job.due
        grid.run("a", 0)
        job = grid.job
        assert job.due
        assert [name for name, latch in job.latches.items() if latch.due] == ["success"]
        assert job.latches["success"].callback == "call me"
        assert [each.job_id for each in every_job(store, due=True)] == ["job"]
        published = job.with_latches(success=replace(job.latches["success"], published_at=store.now()))
        assert store.update_job(published) == ()
        assert store.update_job(published) is None
        assert not grid.job.due
        assert list(every_job(store, due=True)) == []

    def test_a_job_is_due_until_its_published_callback_has_ended(self, store: Store) -> None:
        grid = Grid.create(store, 1, ("a",), success="call me")
        grid.run("a", 0)
        place = Place("the queue", 1_700_000_000_000_001)
        assert publish_due(store, grid.ref, ["success"], lambda *_: place) == 1
        latch = grid.job.latches["success"]
        assert (latch.place, latch.due) == (place, False)
        assert [each.job_id for each in every_job(store, due=True)] == ["job"]
        record_end(store, grid.ref, "success", grid.cell("success", CALLBACK_ROW))
        record_end(store, grid.ref, "success", grid.cell("success", CALLBACK_ROW))
        assert grid.job.latches["success"] == replace(latch, place=None)
        assert list(every_job(store, due=True)) == []
        make_due(store, grid.ref, "success")
        assert publish_due(store, grid.ref, ["success"], lambda *_: place) == 1
        make_due(store, grid.ref, "success")
        assert grid.job.latches["success"] == replace(latch, published_at=None, place=None)

    def test_a_callback_may_end_before_it_is_marked_as_published(self, store: Store) -> None:
        grid = Grid.create(store, 1, ("a",), success="call me")
        grid.run("a", 0)

        def send(*_: object) -> Place:
            record_end(store, grid.ref, "success", grid.cell("success", CALLBACK_ROW))
            return Place("the queue")

        assert publish_due(store, grid.ref, ["success"], send) == 1
        latch = grid.job.latches["success"]
        assert latch.published_at is not None
        assert latch.place is None
        assert list(every_job(store, due=True)) == []

    def test_publish_due_publishes_only_the_callbacks_of_the_given_latches(self, store: Store) -> None:
        grid = Grid.create(store, 2, ("a",), failure="alert", settled="log")
        sent: list[str] = []

        def send(_: JobRecord, name: str, callback: str) -> bool:
            sent.append(f"{name} {callback}")
            return True

        first, second = grid.run("a", 0, FAILED).decided, grid.run("a", 1).decided
        assert publish_due(store, grid.ref, second, send) == 1
        assert publish_due(store, grid.ref, second, send) == 0
        assert publish_due(store, grid.ref, first, send) == 1
        assert sent == ["settled log", "failure alert"]
        assert list(every_job(store, due=True)) == []

    def test_a_callback_added_after_the_decision_is_due(self, store: Store) -> None:
        grid = Grid.create(store, 1, ("a",))
        grid.run("a", 0)
        assert list(every_job(store, due=True)) == []
        grid.update(lambda job: job.with_latches(success=replace(job.latches["success"], callback="late")))
        assert [each.job_id for each in every_job(store, due=True)] == ["job"]

    def test_an_outdated_update_does_not_overwrite_the_decision_of_the_last_write(self, store: Store) -> None:
        grid = Grid.create(store, 1, ("a",), settled="call")
        old = grid.job
        grid.run("a", 0)
        assert store.update_job(replace(old, tombstoned_at=1)) is None
        assert grid.job.settled

    @pytest.mark.parametrize("seed", SEEDS)
    def test_each_latch_is_decided_exactly_once_and_when_its_condition_holds(self, store: Store, seed: int) -> None:
        rng = random.Random(seed)
        grid = Grid.create(store, 3, ("a", "b"))
        decided: list[str] = []
        failed = False
        for _ in range(200):
            tag, row = rng.choice("ab"), rng.randrange(3)
            if grid.begin(tag, row, delivery=Delivery(0, 0, rng.randrange(3))).verdict is Verdict.BEGUN:
                status = rng.choice((FINISHED, FINISHED, FINISHED, FAILED, int(Status.LOST), 1))
                reply = grid.end(tag, row, status, block_later_stages=False)
                decided += reply.decided
                failed = failed or status < 0
            cells = [grid.cell(tag, row) for tag in "ab" for row in range(3)]
            assert ("failure" in decided) == failed
            assert ("settled" in decided) == all(cell.final for cell in cells)
            assert ("success" in decided) == all(cell.final and cell.status == FINISHED for cell in cells)
            assert len(decided) == len(set(decided))
            assert grid.decided == set(decided)
