"""Attempts: begins, fences, ends, and the conditions of writes (rules R4, R13, R14)."""

from __future__ import annotations

import pytest

from celery_statemanager.errors import AttemptSuperseded, BeginRefused
from celery_statemanager.manager import Manager
from celery_statemanager.models import Status
from celery_statemanager.records import Delivery, Verdict, When
from celery_statemanager.stores.base import Store
from celery_statemanager.testing.kit import FAILED, FINISHED, Grid, smoke

BEGUN, DUPLICATE, STALE = Verdict.BEGUN, Verdict.DUPLICATE, Verdict.STALE
RETRY = Delivery(0, 0, 1)


class AttemptContract:
    """Tests of attempts."""

    def test_a_begin_opens_a_numbered_attempt(self, store: Store) -> None:
        grid = Grid.create(store)
        before = store.now()
        reply = grid.begin("a", 1, event_id="b1", delivery=Delivery(0, 2, 3), owner="w", kept="msg", message="hi")
        cell = reply.cell
        assert (reply.verdict, reply.decided) == (BEGUN, ())
        assert (cell.status, cell.message, cell.event_id, cell.version) == (Status.STARTED, "hi", "b1", 1)
        assert (cell.attempt, cell.open, cell.delivery) == (1, True, Delivery(0, 2, 3))
        assert (cell.owner, cell.kept, cell.losses) == ("w", "msg", 0)
        assert before <= cell.began_at == cell.timestamp <= store.now()
        assert grid.cell("a", 1) == cell
        assert (grid.state("a", 1).attempt, grid.state("a", 1).status) == (1, Status.STARTED)

    def test_a_begin_keeps_payload_and_losses(self, store: Store) -> None:
        grid = Grid.create(store)
        grid.begin("a", 0)
        grid.write("a", 0, 0, payload='{"checkpoint":7}', attempt=1, ends_attempt=True, counts_as_loss=True)
        grid.begin("a", 0)
        assert (grid.cell("a", 0).payload, grid.cell("a", 0).losses) == ('{"checkpoint":7}', 1)
        assert grid.cell("a", 0).attempt == 2

    def test_a_repeated_begin_changes_nothing(self, store: Store) -> None:
        grid = Grid.create(store)
        first = grid.begin("a", 0, event_id="b1")
        again = grid.begin("a", 0, event_id="b1")
        assert (again.verdict, again.cell) == (BEGUN, first.cell)
        assert grid.cell("a", 0).version == 1

    @pytest.mark.parametrize(
        ("delivery", "verdict"),
        [
            (Delivery(0, 1, 1), DUPLICATE),
            (Delivery(0, 1, 2), BEGUN),
            (Delivery(0, 2, 0), BEGUN),
            (Delivery(0, 1, 0), STALE),
            (Delivery(0, 0, 9), STALE),
        ],
    )
    def test_deliveries_are_compared_by_replacements_then_retries(
        self, store: Store, delivery: Delivery, verdict: Verdict
    ) -> None:
        grid = Grid.create(store)
        first = grid.begin("a", 0, delivery=Delivery(0, 1, 1)).cell
        reply = grid.begin("a", 0, delivery=delivery)
        assert reply.verdict is verdict
        assert grid.cell("a", 0) == reply.cell
        assert reply.cell.attempt == (2 if verdict is BEGUN else 1)
        assert reply.cell == first or verdict is BEGUN

    def test_an_equal_delivery_begins_after_the_attempt_is_closed(self, store: Store) -> None:
        grid = Grid.create(store)
        grid.run("a", 0, FAILED)
        assert grid.begin("a", 0).verdict is BEGUN
        assert grid.cell("a", 0).attempt == 2

    def test_an_older_delivery_is_stale_even_without_an_open_attempt(self, store: Store) -> None:
        grid = Grid.create(store)
        grid.begin("a", 0, delivery=RETRY)
        grid.end("a", 0, FAILED)
        assert grid.begin("a", 0).verdict is STALE

    def test_after_an_announced_retry_only_its_delivery_begins(self, store: Store) -> None:
        grid = Grid.create(store)
        grid.begin("a", 0, owner="w")
        cell = grid.write("a", 0, 1, attempt=1, ends_attempt=True, next_delivery=RETRY, message="retry in 3 s").cell
        assert (cell.open, cell.owner, cell.delivery, cell.attempt) == (False, None, RETRY, 1)
        assert grid.begin("a", 0).verdict is STALE
        assert grid.begin("a", 0, delivery=RETRY).verdict is BEGUN
        assert grid.begin("a", 0, delivery=RETRY).verdict is DUPLICATE

    def test_a_duplicate_begins_if_it_supersedes_the_current_attempt(self, store: Store) -> None:
        grid = Grid.create(store)
        grid.begin("a", 0, owner="dead")
        assert grid.begin("a", 0, supersedes=2).verdict is DUPLICATE
        assert grid.begin("a", 0, supersedes=1, owner="new").verdict is BEGUN
        assert (grid.cell("a", 0).attempt, grid.cell("a", 0).owner) == (2, "new")
        assert grid.begin("a", 0, supersedes=1).verdict is DUPLICATE

    def test_superseding_an_attempt_of_a_worker_counts_as_a_loss(self, store: Store) -> None:
        grid = Grid.create(store)
        grid.begin("a", 0, owner="w1")
        assert grid.begin("a", 0, supersedes=1, owner="w2").cell.losses == 1
        assert grid.begin("a", 0, delivery=Delivery(0, 0, 1), owner="w3").cell.losses == 1
        assert grid.begin("a", 0, supersedes=3, delivery=Delivery(0, 0, 1)).cell.losses == 2
        assert grid.begin("a", 0, supersedes=4, delivery=Delivery(0, 0, 1)).cell.losses == 2, "a Manager has no lease"

    def test_a_manager_takes_over_an_open_attempt(self, store: Store) -> None:
        grid = Grid.create(store)
        grid.begin("a", 0, delivery=Delivery(0, 5, 5), owner="w")
        assert grid.manager(0).begin("a") == 2
        assert grid.cell("a", 0).owner is None

    def test_a_finished_cell_never_begins_again(self, store: Store) -> None:
        grid = Grid.create(store)
        cell = grid.run("a", 0).cell
        for fields in ({}, {"delivery": Delivery(0, 9, 9)}, {"takes_over": True}, {"supersedes": 1}):
            reply = grid.begin("a", 0, **fields)
            assert (reply.verdict, reply.cell) == (Verdict.FINISHED, cell)
        with pytest.raises(BeginRefused) as refused:
            grid.manager(0).begin("a")
        assert refused.value.reason == "finished"

    def test_a_cell_with_status_finished_may_begin_while_its_attempt_is_open(self, store: Store) -> None:
        grid = Grid.create(store)
        grid.begin("a", 0)
        grid.write("a", 0, FINISHED, attempt=1)
        assert grid.begin("a", 0).verdict is DUPLICATE
        assert grid.begin("a", 0, delivery=RETRY).verdict is BEGUN

    @smoke
    def test_writes_of_an_older_attempt_are_refused(self, store: Store) -> None:
        zombie = Manager.create(store, "job", num_tasks=1, task_index=0)
        assert zombie.begin("a") == 1
        zombie.set_state("a", 5)
        successor = Manager.open(store, "job", task_index=0)
        assert successor.begin("a") == 2
        with pytest.raises(AttemptSuperseded) as refused:
            zombie.set_state("a", FINISHED)
        assert (refused.value.attempt, refused.value.current) == (1, 2)
        with pytest.raises(AttemptSuperseded):
            zombie.progress("a", 1, 2)
        assert zombie.set_state("b", 5).version == 1
        assert successor.set_state("a", FINISHED).version == 4
        assert Manager.open(store, "job").get_state("a", 0).attempt == 2

    def test_a_write_is_refused_if_its_attempt_is_not_the_current_one(self, store: Store) -> None:
        grid = Grid.create(store)
        for attempt in (1, 2):
            with pytest.raises(AttemptSuperseded):
                grid.write("a", 0, 5, attempt=attempt)
        grid.begin("a", 0)
        with pytest.raises(AttemptSuperseded):
            grid.write("a", 0, 5, attempt=2)
        assert grid.cell("a", 0).version == 1
        assert grid.write("a", 0, 5, attempt=1).cell.version == 2

    def test_only_a_terminal_status_ends_the_attempt_of_a_manager(self, store: Store) -> None:
        manager = Manager.create(store, "job", num_tasks=2, task_index=0, tags=("a",))
        grid = Grid(store, manager.ref)
        manager.begin("a")
        manager.set_state("a", 99)
        assert grid.cell("a", 0).open
        manager.set_state("a", FAILED)
        assert grid.cell("a", 0).final
        assert manager.begin("a") == 2
        manager.set_state("a", FINISHED)
        assert grid.cell("a", 0).final
        assert manager.get_state("a", 0).attempt == 2

    def test_a_terminal_write_without_an_attempt_does_not_close_the_open_attempt(self, store: Store) -> None:
        grid = Grid.create(store, tags=("a",))
        grid.begin("a", 0, owner="w")
        cell = grid.write("a", 0, -9).cell
        assert (cell.open, cell.final, cell.owner, cell.status) == (True, False, "w", -9)
        assert grid.decided == set()

    def test_closing_an_attempt_removes_its_owner_and_a_final_cell_has_no_kept_message(self, store: Store) -> None:
        grid = Grid.create(store)
        grid.begin("a", 0, owner="w", kept="msg")
        cell = grid.write("a", 0, 1, attempt=1, ends_attempt=True).cell
        assert (cell.owner, cell.kept, cell.open) == (None, "msg", False)
        grid.begin("a", 0, owner="w", kept="msg")
        assert grid.write("a", 0, FINISHED, attempt=2).cell.kept == "msg"
        cell = grid.end("a", 0, FAILED).cell
        assert (cell.owner, cell.kept) == (None, None)

    def test_a_write_may_identify_its_attempt_by_worker_and_delivery(self, store: Store) -> None:
        grid = Grid.create(store)
        grid.begin("a", 0, owner="w", delivery=RETRY)
        for holder in (("other", RETRY), ("w", Delivery()), ("w", Delivery(0, 1, 0))):
            with pytest.raises(AttemptSuperseded):
                grid.write("a", 0, 5, if_owner=holder)
        assert grid.write("a", 0, FAILED, if_owner=("w", RETRY), when=When.OPEN, ends_attempt=True).cell.final
        with pytest.raises(AttemptSuperseded):
            grid.write("a", 0, 5, if_owner=("w", RETRY))

    def test_a_write_may_require_an_open_attempt(self, store: Store) -> None:
        grid = Grid.create(store)
        with pytest.raises(AttemptSuperseded):
            grid.write("a", 0, 5, when=When.OPEN)
        grid.begin("a", 0)
        grid.write("a", 0, 5, attempt=1, when=When.OPEN)
        grid.end("a", 0, FAILED, when=When.OPEN)
        with pytest.raises(AttemptSuperseded):
            grid.write("a", 0, 6, attempt=1, when=When.OPEN)
        assert grid.cell("a", 0).status == FAILED

    def test_a_write_may_require_an_idle_cell(self, store: Store) -> None:
        grid = Grid.create(store)
        assert grid.write("a", 0, int(Status.REVOKED), when=When.IDLE).cell.final
        with pytest.raises(AttemptSuperseded):
            grid.write("a", 0, FAILED, when=When.IDLE)
        grid.begin("a", 1)
        with pytest.raises(AttemptSuperseded):
            grid.write("a", 1, FAILED, when=When.IDLE)
        grid.write("a", 1, 1, attempt=1, ends_attempt=True, next_delivery=RETRY)
        assert grid.write("a", 1, int(Status.EXPIRED), when=When.IDLE).cell.final

    @pytest.mark.parametrize("open_status", [5, FINISHED])
    def test_the_end_of_an_attempt_keeps_a_negative_status_of_the_application(
        self, store: Store, open_status: int
    ) -> None:
        grid = Grid.create(store)
        grid.begin("a", 0)
        grid.write("a", 0, -42, attempt=1, message="mine")
        cell = grid.end("a", 0, open_status, keep_app_status=True, message="theirs").cell
        assert (cell.status, cell.message, cell.open) == (-42, "mine", False)

    def test_a_task_that_wrote_finished_and_then_fails_has_failed(self, store: Store) -> None:
        grid = Grid.create(store)
        grid.begin("a", 0)
        grid.write("a", 0, FINISHED, attempt=1, message="done")
        cell = grid.end("a", 0, FAILED, keep_app_status=True, message="ValueError: late").cell
        assert (cell.status, cell.message) == (FAILED, "ValueError: late")

    def test_the_end_of_an_attempt_keeps_the_last_message_if_it_has_none(self, store: Store) -> None:
        grid = Grid.create(store)
        grid.begin("a", 0)
        grid.write("a", 0, 50, attempt=1, message="page 5")
        assert grid.end("a", 0, keep_app_status=True).cell.message == "page 5"
        grid.begin("a", 1)
        grid.write("a", 1, 50, attempt=1, message="page 5")
        assert grid.end("a", 1).cell.message is None

    def test_losses_are_counted(self, store: Store) -> None:
        grid = Grid.create(store)
        for losses in (1, 2):
            grid.begin("a", 0)
            assert grid.end("a", 0, int(Status.LOST), counts_as_loss=True).cell.losses == losses
