"""Ends that come late, after a sweep has presumed the worker dead (rules R14, R16)."""

from __future__ import annotations

import pytest

from celery_statemanager.errors import AttemptSuperseded
from celery_statemanager.manager import Manager
from celery_statemanager.models import Status
from celery_statemanager.records import Delivery, Verdict, Write
from celery_statemanager.stores.base import Store
from celery_statemanager.testing.kit import FAILED, FINISHED, Grid, smoke

LOST, TIMED_OUT = int(Status.LOST), int(Status.TIMED_OUT)


def lose(grid: Grid, tag: str, row: int) -> tuple[str, ...]:
    """Mark the open attempt of a cell as LOST, as a sweep does. Return the latches that this decided."""
    lost = Write.lost(tag, row, "lost with its worker w", attempt=grid.cell(tag, row).attempt)
    return grid.store.write(grid.ref, lost).decided


def publish_again(grid: Grid, tag: str, row: int) -> None:
    """Close the open attempt of a cell whose message is published again, as a sweep does."""
    attempt = grid.cell(tag, row).attempt
    again = Write.returned(tag, row, "sent again: its worker w is dead", attempt=attempt, counts_as_loss=True)
    grid.store.write(grid.ref, again)


def end(grid: Grid, tag: str, row: int, status: int = FINISHED, message: str | None = None, attempt: int = 1) -> None:
    """End an attempt as its task does."""
    grid.store.write(grid.ref, Write.ending(tag, row, status, message, attempt=attempt))


class LateEndContract:
    """Tests of ends that come after another process has closed the attempt."""

    @smoke
    def test_the_end_of_an_attempt_replaces_a_lost_that_a_sweep_set(self, store: Store) -> None:
        grid = Grid.create(store, 2, ("a",))
        grid.run("a", 1)
        grid.begin("a", 0, owner="w")
        grid.write("a", 0, 50, attempt=1, payload='{"progress":{"done":1,"total":2},"n":1}')
        assert set(lose(grid, "a", 0)) == {"failure", "settled"}
        reply = store.write(grid.ref, Write.ending("a", 0, FINISHED, attempt=1))
        cell = reply.cell
        assert (cell.status, cell.message, cell.version, cell.attempt) == (FINISHED, None, 4, 1)
        assert (cell.final, cell.owner, cell.losses) == (True, None, 1)
        assert grid.state("a", 0).payload == {"progress": {"done": 2, "total": 2}, "n": 1}
        assert reply.decided == ("success",)
        assert grid.decided == {"success", "failure", "settled"}
        summary = grid.manager().summary()
        assert (summary.finished, summary.failed, str(summary.failed_indexes)) == (2, 0, "")

    @pytest.mark.parametrize(("status", "message"), [(FAILED, "ValueError: late"), (-42, "mine"), (TIMED_OUT, None)])
    def test_a_late_failure_replaces_a_lost_too(self, store: Store, status: int, message: str | None) -> None:
        grid = Grid.create(store, 2, ("a", "b"))
        grid.begin("a", 0, owner="w")
        lose(grid, "a", 0)
        end(grid, "a", 0, status, message)
        assert (grid.state("a", 0).status, grid.state("a", 0).message) == (status, message)
        assert grid.state("b", 0).status == status
        assert grid.state("b", 0).message == f"not run: stage 'a' failed: {message or status}"

    def test_a_late_end_replaces_the_state_of_a_message_that_was_published_again(self, store: Store) -> None:
        grid = Grid.create(store, 2, ("a",))
        grid.begin("a", 0, owner="w", kept="msg")
        publish_again(grid, "a", 0)
        end(grid, "a", 0)
        assert (grid.cell("a", 0).status, grid.cell("a", 0).message) == (FINISHED, None)
        assert grid.begin("a", 0, owner="w2").verdict is Verdict.FINISHED

    def test_a_late_retry_continues_although_the_job_has_settled(self, store: Store) -> None:
        grid = Grid.create(store, 1, ("a", "b"))
        grid.begin("a", 0, owner="w")
        lose(grid, "a", 0)
        store.write(grid.ref, Write.returned("a", 0, "retry 1 of 3", Delivery(0, 0, 1), attempt=1))
        assert grid.decided == {"failure", "settled"}
        assert (grid.state("a", 0).status, grid.state("b", 0).status) == (1, 0)
        assert grid.begin("a", 0).verdict is Verdict.STALE
        assert grid.begin("a", 0, delivery=Delivery(0, 0, 1)).verdict is Verdict.BEGUN
        end(grid, "a", 0, attempt=2)
        assert grid.begin("b", 0, owner="w").verdict is Verdict.BEGUN
        assert grid.end("b", 0).decided == ("success",)
        assert grid.begin("b", 0, owner="w").verdict is Verdict.FINISHED

    def test_a_late_end_may_name_its_attempt_by_worker_and_delivery(self, store: Store) -> None:
        grid = Grid.create(store)
        grid.begin("a", 0, owner="w", delivery=Delivery(0, 0, 1))
        lose(grid, "a", 0)
        for holder in (("other", Delivery(0, 0, 1)), ("w", Delivery())):
            with pytest.raises(AttemptSuperseded):
                store.write(grid.ref, Write.ending("a", 0, TIMED_OUT, if_owner=holder))
        store.write(grid.ref, Write.ending("a", 0, TIMED_OUT, if_owner=("w", Delivery(0, 0, 1))))
        assert grid.cell("a", 0).status == TIMED_OUT

    def test_only_one_end_replaces_a_lost(self, store: Store) -> None:
        grid = Grid.create(store)
        grid.begin("a", 0, owner="w")
        lose(grid, "a", 0)
        with pytest.raises(AttemptSuperseded):
            lose(grid, "a", 0)
        with pytest.raises(AttemptSuperseded):
            store.write(grid.ref, Write.returned("a", 0, "again", attempt=1, counts_as_loss=True))
        end(grid, "a", 0, FAILED, "first")
        with pytest.raises(AttemptSuperseded):
            end(grid, "a", 0, FINISHED)
        assert grid.cell("a", 0).message == "first"

    def test_a_write_that_does_not_end_the_attempt_is_refused(self, store: Store) -> None:
        grid = Grid.create(store)
        grid.begin("a", 0, owner="w")
        lose(grid, "a", 0)
        late = Write.state("a", 0, 50)
        late.attempt, late.when = 1, Write.ending("a", 0, FINISHED).when
        with pytest.raises(AttemptSuperseded):
            store.write(grid.ref, late)
        assert grid.cell("a", 0).status == LOST

    def test_an_attempt_that_began_again_is_not_replaced(self, store: Store) -> None:
        grid = Grid.create(store)
        for number, close in enumerate((lose, publish_again)):
            grid.begin("a", 0, owner="w", delivery=Delivery(2 * number))
            attempt = grid.cell("a", 0).attempt
            close(grid, "a", 0)
            grid.begin("a", 0, owner="w2", delivery=Delivery(2 * number + 1))
            with pytest.raises(AttemptSuperseded):
                end(grid, "a", 0, attempt=attempt)
            assert grid.end("a", 0, FAILED).cell.attempt == attempt + 1
            with pytest.raises(AttemptSuperseded):
                end(grid, "a", 0, attempt=attempt)

    @pytest.mark.parametrize("by", ["task", "manager", "never begun"])
    def test_a_lost_that_no_sweep_set_is_not_replaced(self, store: Store, by: str) -> None:
        grid = Grid.create(store)
        if by == "manager":
            manager: Manager = grid.manager(0)
            manager.begin("a")
            manager.set_state("a", LOST, "mine")
        elif by == "task":
            grid.begin("a", 0, owner="w")
            end(grid, "a", 0, LOST, "mine")
        else:
            store.write(grid.ref, Write.lost("a", 0, "mine"))
        with pytest.raises(AttemptSuperseded):
            end(grid, "a", 0, FINISHED, attempt=grid.cell("a", 0).attempt)
        assert grid.cell("a", 0).message == "mine"

    def test_a_late_end_of_a_cancelled_job_is_accepted(self, store: Store) -> None:
        grid = Grid.create(store, 2, ("a",))
        grid.begin("a", 0, owner="w")
        lose(grid, "a", 0)
        grid.cancel()
        end(grid, "a", 0)
        assert grid.cell("a", 0).status == FINISHED
        assert grid.decided == {"failure", "settled"}
