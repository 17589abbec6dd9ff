"""Late begins: an attempt that begins in the same step as its first write (rule R18)."""

from __future__ import annotations

import pytest

from celery_statemanager.errors import AttemptSuperseded, BeginRefused, JobCancelled
from celery_statemanager.manager import Manager
from celery_statemanager.models import Status
from celery_statemanager.records import Delivery
from celery_statemanager.stores.base import Store
from celery_statemanager.testing.kit import FAILED, FINISHED, Grid


class LateBeginContract:
    """Tests of late begins."""

    def test_a_late_begin_takes_its_attempt_number_with_the_first_write(self, store: Store) -> None:
        grid = Grid.create(store)
        begin = grid.request("a", 0, owner="w", kept="msg", delivery=Delivery(0, 0, 2))
        reply = grid.write("a", 0, 40, begin=begin, message="late", payload='{"n":1}')
        cell = reply.cell
        assert (cell.version, cell.attempt, cell.open, cell.status) == (1, 1, True, 40)
        assert (cell.owner, cell.kept, cell.delivery) == ("w", "msg", Delivery(0, 0, 2))
        assert (cell.message, cell.payload) == ("late", '{"n":1}')
        assert cell.began_at == cell.timestamp
        assert grid.cell("a", 0) == cell
        assert grid.write("a", 0, 50, attempt=1).cell.version == 2

    def test_a_late_begin_that_ends_at_once_writes_one_version(self, store: Store) -> None:
        grid = Grid.create(store, 1, ("a",))
        grid.write("a", 0, 5, payload='{"n":1}')
        reply = grid.write(
            "a", 0, FINISHED, begin=grid.request("a", 0, owner="w"), ends_attempt=True, keep_payload=True
        )
        cell = reply.cell
        assert (cell.version, cell.attempt, cell.open, cell.owner) == (2, 1, False, None)
        assert (cell.final, cell.payload) == (True, '{"n":1}')
        assert set(reply.decided) == {"success", "settled"}

    def test_a_late_begin_and_its_write_may_share_an_event_id(self, store: Store) -> None:
        grid = Grid.create(store)
        grid.write("a", 0, 5)
        reply = grid.write("a", 0, 40, event_id="one", begin=grid.request("a", 0, event_id="one"))
        assert (reply.changed, reply.cell.version, reply.cell.status, reply.cell.attempt) == (True, 2, 40, 1)

    def test_a_repeated_late_begin_changes_nothing(self, store: Store) -> None:
        grid = Grid.create(store)
        first = grid.write("a", 0, 40, event_id="e", begin=grid.request("a", 0))
        again = grid.write("a", 0, 40, event_id="e", begin=grid.request("a", 0))
        assert (again.changed, again.cell) == (False, first.cell)

    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            ({"delivery": Delivery(0, 1, 1)}, "duplicate"),
            ({"delivery": Delivery(0, 1, 0)}, "stale"),
            ({"delivery": Delivery(0, 1, 1), "supersedes": 2}, "duplicate"),
        ],
    )
    def test_a_late_begin_is_judged_like_any_other(self, store: Store, fields: dict[str, object], reason: str) -> None:
        grid = Grid.create(store)
        cell = grid.begin("a", 0, delivery=Delivery(0, 1, 1)).cell
        with pytest.raises(BeginRefused) as refused:
            grid.write("a", 0, 40, begin=grid.request("a", 0, **fields))
        assert refused.value.reason == reason
        assert grid.cell("a", 0) == cell

    @pytest.mark.parametrize("fields", [{"delivery": Delivery(0, 1, 2)}, {"supersedes": 1}, {"takes_over": True}])
    def test_a_late_begin_fences_the_open_attempt(self, store: Store, fields: dict[str, object]) -> None:
        grid = Grid.create(store)
        grid.begin("a", 0, delivery=Delivery(0, 1, 1))
        assert grid.write("a", 0, 40, begin=grid.request("a", 0, **fields)).cell.attempt == 2

    def test_a_late_begin_of_a_finished_or_closed_cell_is_refused(self, store: Store) -> None:
        grid = Grid.create(store, 2, ("a",))
        cell = grid.run("a", 0).cell
        with pytest.raises(BeginRefused) as refused:
            grid.write("a", 0, 40, begin=grid.request("a", 0))
        assert refused.value.reason == "finished"
        grid.run("a", 1, FAILED)
        with pytest.raises(BeginRefused) as refused:
            grid.write("a", 1, FINISHED, begin=grid.request("a", 1, delivery=Delivery(0, 0, 1)), ends_attempt=True)
        assert refused.value.reason == "closed"
        assert grid.cell("a", 0) == cell
        assert grid.cell("a", 1).status == FAILED

    def test_a_late_begin_unblocks_later_stages_and_may_block_them_again(self, store: Store) -> None:
        grid = Grid.create(store, 1, ("a", "b", "other"))
        grid.begin("other", 0)
        grid.run("a", 0, FAILED, message="first")
        assert grid.state("b", 0).status == FAILED
        grid.write("a", 0, 5, begin=grid.request("a", 0))
        assert grid.state("b", 0).status == 0
        grid.end("a", 0, FAILED)
        begin = grid.request("a", 0)
        grid.write(
            "a", 0, int(Status.TIMED_OUT), begin=begin, ends_attempt=True, block_later_stages=True, message="second"
        )
        assert grid.state("b", 0).status == Status.TIMED_OUT
        assert grid.state("b", 0).message == "not run: stage 'a' failed: second"

    def test_in_a_cancelled_job_a_late_begin_may_only_end_its_cell(self, store: Store) -> None:
        grid = Grid.create(store, 2, ("a",))
        grid.begin("a", 1)
        grid.cancel("enough")
        with pytest.raises(JobCancelled, match="enough"):
            grid.write("a", 0, 40, begin=grid.request("a", 0))
        assert grid.cell("a", 0).version == 0
        reply = grid.write("a", 0, FINISHED, begin=grid.request("a", 0), ends_attempt=True)
        assert (reply.cell.status, reply.cell.attempt, reply.decided) == (FINISHED, 1, ())
        assert grid.end("a", 1).decided == ("settled",)

    def test_an_attempt_that_the_store_has_lost_begins_again_under_its_number(self, store: Store) -> None:
        grid = Grid.create(store, 2, ("a",))
        grid.run("a", 0, 0)  # attempt 1; the begins of attempts 2 and 3 are not in the store
        begin = grid.request("a", 0, owner="w", kept="msg", delivery=Delivery(0, 0, 2))
        with pytest.raises(AttemptSuperseded) as refused:
            grid.write("a", 0, 40, attempt=3)
        assert refused.value.forgotten
        cell = grid.write("a", 0, 40, attempt=3, begin=begin).cell
        assert (cell.version, cell.attempt, cell.open, cell.status) == (3, 3, True, 40)
        assert (cell.owner, cell.kept, cell.delivery) == ("w", "msg", Delivery(0, 0, 2))
        assert grid.end("a", 0).cell.final
        assert grid.write("a", 1, FINISHED, attempt=2, begin=grid.request("a", 1), ends_attempt=True).decided

    @pytest.mark.parametrize("owner", ["w", None])
    def test_a_forgotten_attempt_fences_the_attempts_before_it(self, store: Store, owner: str | None) -> None:
        grid = Grid.create(store)
        grid.begin("a", 0, owner="old")
        begin = grid.request("a", 0, owner=owner)  # its delivery equals that of the open attempt
        assert grid.write("a", 0, 40, attempt=2, begin=begin).cell.attempt == 2
        with pytest.raises(AttemptSuperseded):
            grid.write("a", 0, 50, attempt=1)
        with pytest.raises(AttemptSuperseded):
            grid.write("a", 0, 50, attempt=1, begin=begin)
        assert grid.write("a", 0, 50, attempt=2, begin=begin).cell.attempt == 2, "it is not forgotten any more"

    def test_a_lost_attempt_continues_although_the_job_has_settled(self, store: Store) -> None:
        grid = Grid.create(store, 1, ("a", "b"))
        grid.run("a", 0, FAILED)
        assert grid.decided == {"failure", "settled"}
        grid.write("a", 0, 40, attempt=2, begin=grid.request("a", 0))
        assert grid.state("b", 0).status == 0
        assert grid.end("a", 0).cell.final

    def test_a_forgotten_attempt_of_a_cancelled_job_may_only_end(self, store: Store) -> None:
        grid = Grid.create(store, 2, ("a",))
        grid.cancel("enough")
        begin = grid.request("a", 0)
        with pytest.raises(JobCancelled):
            grid.write("a", 0, 40, attempt=2, begin=begin)
        assert grid.write("a", 0, FINISHED, attempt=2, begin=begin, ends_attempt=True).cell.status == FINISHED

    def test_a_manager_continues_as_an_attempt_that_the_store_has_lost(self, store: Store) -> None:
        manager = Manager.create(store, "job", num_tasks=1, task_index=0)
        manager.begin("a")
        grid = Grid(store, manager.ref)
        manager._attempts["a"] = 3  # the store has forgotten attempts 2 and 3
        manager.progress("a", 1, 2)
        assert (grid.cell("a", 0).attempt, grid.cell("a", 0).status, grid.cell("a", 0).open) == (3, 50, True)
        assert manager.set_state("a", FINISHED).attempt == 3
        assert grid.cell("a", 0).final
