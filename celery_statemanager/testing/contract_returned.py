"""The outbox: rows whose message is due again, next stages, pauses (rule R19)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from celery_statemanager.errors import AttemptSuperseded, JobCancelled
from celery_statemanager.indexset import IndexSet
from celery_statemanager.records import (
    CALLBACK_ROW,
    Cancellation,
    Claimed,
    ClaimRequest,
    Delivery,
    Flow,
    OutboxState,
    Returned,
    Verdict,
    When,
    Write,
)
from celery_statemanager.stores.capabilities import Outbox
from celery_statemanager.testing.contract_outbox import claim, create, rows, state
from celery_statemanager.testing.kit import CANCELLED, FAILED, FINISHED, Grid, smoke

SECOND = Delivery(1)
"""The delivery of a message that was published a second time."""

STAGES = ("a", "b")


def published(
    store: Outbox, num_tasks: int = 4, tags: tuple[str, ...] = ("a",), max_in_flight: int | None = None
) -> Grid:
    """Create a job, and claim as many of its rows as may be in flight."""
    grid = create(store, num_tasks, tags, max_in_flight)
    claim(grid, "submitter")
    return grid


def send_back(grid: Grid, tag: str, row: int, *, is_open: bool = False) -> None:
    """Make the message of a cell due again."""
    back = Write.sent_back(tag, row, "sent again: why", attempt=grid.cell(tag, row).attempt, is_open=is_open)
    grid.store.write(grid.ref, back)


def pause(grid: Grid, *, paused: bool = True) -> None:
    """Pause or resume a job."""
    grid.update(lambda job: replace(job, flow=replace(job.flow or Flow(), paused=paused)))


def give_back(grid: Grid, publisher: str, returned: Returned) -> Claimed:
    """Return claimed rows that a publisher could not publish."""
    assert isinstance(grid.store, Outbox)
    return grid.store.claim(grid.ref, ClaimRequest(publisher=publisher, limit=0, returned=returned))


class ReturnedContract:
    """Tests of rows that are published again, of next stages, and of pauses."""

    def test_a_callback_of_a_paused_job_begins(self, store: Outbox) -> None:
        grid = published(store)
        pause(grid)
        assert grid.begin("failure", CALLBACK_ROW, owner="w", may_wait=True).verdict is Verdict.BEGUN

    def test_a_callback_of_a_cancelled_job_is_sent_back(self, store: Outbox) -> None:
        grid = published(store)
        grid.cancel()
        grid.begin("settled", CALLBACK_ROW, owner="w")
        send_back(grid, "settled", CALLBACK_ROW, is_open=True)
        cell = grid.cell("settled", CALLBACK_ROW)
        assert (cell.status, cell.delivery) == (1, SECOND)

    @smoke
    def test_a_message_that_never_began_is_claimed_again(self, store: Outbox) -> None:
        grid = published(store)
        send_back(grid, "a", 2)
        cell = grid.cell("a", 2)
        assert (cell.status, cell.message, cell.version, cell.delivery, cell.open) == (
            0,
            "sent again: why",
            1,
            SECOND,
            False,
        )
        assert state(grid).returned == Returned(waiting=rows("2"))
        assert claim(grid, "sweeper") == Claimed(rows("2"), rows("2"), 0)
        assert state(grid).returned == Returned()
        assert state(grid).claims["sweeper"].rows == rows("2")
        assert claim(grid, "sweeper").rows == IndexSet()

    def test_only_the_newest_publication_may_begin(self, store: Outbox) -> None:
        grid = published(store)
        send_back(grid, "a", 0)
        assert grid.begin("a", 0, owner="w").verdict is Verdict.STALE
        assert grid.begin("a", 0, owner="w", delivery=SECOND).verdict is Verdict.BEGUN
        assert grid.begin("a", 0, owner="w2", delivery=SECOND).verdict is Verdict.DUPLICATE
        assert grid.begin("a", 0, owner="w2", delivery=Delivery(0, 5, 5)).verdict is Verdict.STALE

    def test_the_delivery_that_has_ended_a_cell_does_not_begin_again(self, store: Outbox) -> None:
        grid = published(store)
        grid.begin("a", 0, owner="w")
        grid.end("a", 0, FAILED)
        assert grid.begin("a", 0, owner="w2").verdict is Verdict.CLOSED
        assert grid.begin("a", 0, owner="w2", delivery=SECOND).verdict is Verdict.BEGUN

    @smoke
    def test_a_lost_attempt_is_claimed_again(self, store: Outbox) -> None:
        grid = published(store)
        grid.begin("a", 1, owner="w", kept='{"m":1}')
        grid.write("a", 1, 40, attempt=1)
        lost = Write.sent_back("a", 1, "sent again", attempt=1, is_open=True, counts_as_loss=True)
        cell = store.write(grid.ref, lost).cell
        assert (cell.status, cell.open, cell.losses, cell.kept, cell.delivery) == (1, False, 1, '{"m":1}', SECOND)
        assert state(grid).returned == Returned(begun=rows("1"))
        assert list(store.list_open_attempts()) == []
        assert claim(grid, "sweeper").again == rows("1")
        assert grid.begin("a", 1, owner="w2", delivery=SECOND).cell.kept == '{"m":1}'

    def test_the_end_of_an_attempt_that_was_presumed_dead_counts(self, store: Outbox) -> None:
        grid = published(store)
        grid.begin("a", 1, owner="w")
        send_back(grid, "a", 1, is_open=True)
        retried = Write.returned("a", 1, "retry", Delivery(0, 0, 1), attempt=1)
        assert store.write(grid.ref, retried).cell.delivery == SECOND
        send_back(grid, "a", 1)
        grid.begin("a", 1, owner="w2", delivery=Delivery(2))
        send_back(grid, "a", 1, is_open=True)
        store.write(grid.ref, Write.ending("a", 1, FINISHED, attempt=2))
        assert grid.cell("a", 1).status == FINISHED
        assert grid.begin("a", 1, owner="w3", delivery=Delivery(3)).verdict is Verdict.FINISHED

    def test_a_retry_is_due_again_only_after_it_was_lost(self, store: Outbox) -> None:
        grid = published(store)
        grid.begin("a", 0, owner="w")
        retried = Write.returned("a", 0, "retry", Delivery(0, 0, 1), attempt=1)
        retried.kept = '{"m":1}'
        cell = store.write(grid.ref, retried).cell
        assert (cell.is_due, cell.kept, cell.delivery) == (False, '{"m":1}', Delivery(0, 0, 1))
        send_back(grid, "a", 0)
        cell = grid.cell("a", 0)
        assert (cell.is_due, cell.kept, cell.delivery) == (True, '{"m":1}', Delivery(1, 0, 1))
        assert state(grid).returned == Returned(begun=rows("0"))

    def test_nothing_is_due_again_that_runs_or_has_ended(self, store: Outbox) -> None:
        grid = published(store)
        grid.begin("a", 0, owner="w")
        grid.run("a", 1)
        for row in (0, 1):
            with pytest.raises(AttemptSuperseded):
                send_back(grid, "a", row)
        with pytest.raises(AttemptSuperseded):
            store.write(grid.ref, Write.sent_back("a", 2, "why", attempt=1))
        assert state(grid).returned == Returned()

    def test_a_repeated_return_changes_nothing(self, store: Outbox) -> None:
        grid = published(store)
        back = Write.sent_back("a", 0, "why", attempt=0)
        store.write(grid.ref, replace(back))
        claim(grid, "sweeper")
        assert not store.write(grid.ref, replace(back)).changed
        assert state(grid).returned == Returned()
        assert grid.cell("a", 0).delivery == SECOND

    def test_a_returned_row_is_not_in_flight(self, store: Outbox) -> None:
        grid = published(store, 6, max_in_flight=2)
        grid.begin("a", 1, owner="w")
        send_back(grid, "a", 0)
        send_back(grid, "a", 1, is_open=True)
        assert claim(grid, limit=1).rows == rows("1"), "rows that have begun come first"
        assert claim(grid).rows == rows("0"), "then the others, before new ones"
        assert claim(grid).rows == IndexSet()
        send_back(grid, "a", 0)
        grid.begin("a", 0, delivery=Delivery(2))
        grid.end("a", 0, publisher="w")
        assert state(grid).returned == Returned()
        assert state(grid).claims["w"].rows == rows("2"), "its end makes room for one row, not for two"
        send_back(grid, "a", 2)
        grid.begin("a", 1, owner="w", delivery=Delivery(2))
        end = grid.end("a", 1, publisher="w")
        assert (end.claimed, end.again) == (rows("2-3"), rows("2"))

    @smoke
    def test_rows_that_could_not_be_published_are_returned(self, store: Outbox) -> None:
        grid = create(store, 6)
        claim(grid, "p", 4)
        left = Returned(rows("2"), rows("3,5"))
        assert give_back(grid, "p", left) == Claimed(IndexSet(), IndexSet(), 2)
        assert state(grid) == OutboxState(4, {}, Returned(rows("2"), rows("3")))
        claim(grid, "sweeper", 1)
        assert give_back(grid, "p", left).rows == IndexSet(), "a repetition changes nothing"
        assert state(grid).returned == Returned(waiting=rows("3"))
        assert claim(grid, "sweeper") == Claimed(rows("3-5"), rows("3"), 0)

    def test_a_row_that_is_returned_in_two_ways_counts_once(self, store: Outbox) -> None:
        grid = create(store, 3)
        claim(grid, "p")
        send_back(grid, "a", 2)
        give_back(grid, "p", Returned(begun=rows("2")))
        assert state(grid).returned == Returned(begun=rows("2"))

    def test_a_row_that_is_taken_over_is_not_claimed_twice(self, store: Outbox) -> None:
        grid = create(store, 3)
        claim(grid, "p")
        send_back(grid, "a", 2)
        assert claim(grid, "sweeper", limit=0, dead=("p",)) == Claimed(rows("0-2"), rows("0-2"), 0)
        assert claim(grid, "q").rows == IndexSet()

    def test_claims_of_publishers_that_have_ended_are_removed(self, store: Outbox) -> None:
        grid = create(store, 6)
        for publisher in ("ended", "dead", "alive"):
            claim(grid, publisher, 1)
        assert isinstance(store, Outbox)
        request = ClaimRequest(publisher="sweeper", limit=0, dead=frozenset({"dead"}), ended=frozenset({"ended", "x"}))
        assert store.claim(grid.ref, request) == Claimed(rows("1"), rows("1"), 3)
        assert {name: each.rows for name, each in state(grid).claims.items()} == {
            "alive": rows("2"),
            "sweeper": rows("1"),
        }

    @smoke
    def test_the_end_of_a_stage_claims_the_next_one(self, store: Outbox) -> None:
        grid = published(store, 4, STAGES, max_in_flight=2)
        grid.begin("a", 0)
        end = grid.end("a", 0, publisher="w", value='"text"', next_is_due=True)
        assert end.claimed == rows("0")
        assert state(grid).claims["w"].rows == rows("0")
        assert state(grid).claimed == 2
        assert store.get_value(grid.ref, 0) == '"text"'
        assert store.get_value(grid.ref, 1) is None
        grid.begin("b", 0)
        assert grid.end("b", 0, publisher="w", value="").claimed == rows("2")
        assert store.get_value(grid.ref, 0) is None

    def test_a_next_stage_is_claimed_without_a_window_too(self, store: Outbox) -> None:
        grid = published(store, 2, STAGES)
        grid.begin("a", 0)
        first = grid.end("a", 0, publisher="w", next_is_due=True, event_id="0" * 32)
        assert first.claimed == rows("0")
        again = grid.write("a", 0, FINISHED, ends_attempt=True, publisher="w", next_is_due=True, event_id="0" * 32)
        assert (again.changed, again.claimed) == (False, rows("0")), "its response was lost"

    def test_only_the_success_of_a_stage_claims_the_next_one(self, store: Outbox) -> None:
        grid = published(store, 4, STAGES)
        for row in (0, 1):
            grid.begin("a", row, owner="w")
        assert grid.end("a", 0, FAILED, publisher="w", next_is_due=True).claimed == IndexSet()
        store.write(grid.ref, Write.proven("a", 1, attempt=1))
        late = Write.ending("a", 1, FINISHED, attempt=1)
        late.publisher, late.next_is_due = "w", True
        assert store.write(grid.ref, late).claimed == IndexSet(), "it had finished before"
        grid.begin("a", 2)
        grid.cancel()
        assert grid.end("a", 2, publisher="w", next_is_due=True).claimed == IndexSet()
        assert state(grid).claims.keys() == {"submitter"}

    def test_a_later_stage_counts_as_begun(self, store: Outbox) -> None:
        grid = published(store, 3, STAGES)
        grid.run("a", 1)
        send_back(grid, "b", 1)
        assert grid.cell("b", 1).status == 0
        assert state(grid).returned == Returned(begun=rows("1"))

    @smoke
    def test_a_paused_job_claims_only_rows_that_have_begun(self, store: Outbox) -> None:
        grid = create(store, 6)
        claim(grid, "submitter", 4)
        grid.begin("a", 0, owner="w")
        pause(grid)
        send_back(grid, "a", 0, is_open=True)
        send_back(grid, "a", 1)
        assert claim(grid, "p") == Claimed(rows("0"), rows("0"), 2)
        assert claim(grid, "p").rows == IndexSet()
        assert claim(grid, "p", dead=("submitter",)).rows == rows("0-3"), "they may have been published"
        pause(grid, paused=False)
        assert claim(grid, "p") == Claimed(rows("4-5"), IndexSet(), 0)

    @smoke
    def test_a_begin_in_a_paused_job_gives_the_row_back(self, store: Outbox) -> None:
        grid = published(store, 4, max_in_flight=4)
        grid.begin("a", 0, owner="w")
        pause(grid)
        reply = grid.begin("a", 1, owner="w", may_wait=True)
        assert (reply.verdict, reply.cell.status, reply.cell.open, reply.cell.version) == (Verdict.PAUSED, 0, False, 1)
        assert reply.cell.delivery == SECOND
        assert state(grid).returned == Returned(waiting=rows("1"))
        assert grid.begin("a", 1, owner="w", may_wait=True).verdict is Verdict.STALE
        assert grid.begin("a", 2, owner="w").verdict is Verdict.BEGUN, "it cannot be given back"
        store.write(grid.ref, Write.returned("a", 0, "retry", Delivery(0, 0, 1), attempt=1))
        assert grid.begin("a", 0, owner="w", delivery=Delivery(0, 0, 1), may_wait=True).verdict is Verdict.BEGUN
        pause(grid, paused=False)
        assert claim(grid).rows == rows("1")
        assert grid.begin("a", 1, owner="w", delivery=SECOND, may_wait=True).verdict is Verdict.BEGUN

    def test_a_task_that_has_run_before_it_could_begin_does_not_wait(self, store: Outbox) -> None:
        grid = published(store)
        pause(grid)
        begin = grid.request("a", 0, owner="w", may_wait=True)
        assert grid.write("a", 0, FINISHED, begin=begin, ends_attempt=True, when=When.OPEN).cell.status == FINISHED

    def test_a_pause_is_kept_with_the_job(self, store: Outbox) -> None:
        grid = create(store, max_in_flight=2)
        flow = Flow(2, "0-1", 7, True, "deploying")
        grid.update(lambda job: replace(job, flow=flow))
        assert grid.job.flow == flow

    def test_a_cancelled_job_publishes_nothing_new(self, store: Outbox) -> None:
        grid = create(store, 6)
        claim(grid, "submitter", 4)
        for row in (0, 1):
            grid.begin("a", row, owner="w")
        send_back(grid, "a", 0, is_open=True)
        send_back(grid, "a", 2)
        grid.cancel("why")
        assert claim(grid, "p") == Claimed(rows("0"), rows("0"), 2), "so that it ends"
        with pytest.raises(JobCancelled):
            send_back(grid, "a", 3)
        send_back(grid, "a", 1, is_open=True)
        cell = grid.cell("a", 1)
        assert (cell.status, cell.message, cell.final) == (CANCELLED, "why", True)
        assert state(grid).returned == Returned(waiting=rows("2"))
        assert grid.decided == set()
        back = Write.never_begun("a", 0, CANCELLED, "why")
        assert store.write(grid.ref, back).decided == ("settled",)

    def test_a_cancelled_job_claims_what_has_begun_even_if_its_window_is_full(self, store: Outbox) -> None:
        """Its other rows in flight do not begin, and never make room."""
        grid = published(store, 4, max_in_flight=3)
        grid.begin("a", 0, owner="w")
        send_back(grid, "a", 0, is_open=True)
        grid.update(lambda job: replace(job, flow=replace(job.flow or Flow(), max_in_flight=1)))
        grid.cancel()
        assert claim(grid, "sweeper").rows == rows("0")

    def test_a_callback_is_due_again_with_its_latch(self, store: Outbox) -> None:
        grid = published(store)
        grid.begin("success", CALLBACK_ROW, owner="w")
        send_back(grid, "success", CALLBACK_ROW, is_open=True)
        assert grid.cell("success", CALLBACK_ROW).delivery == SECOND
        assert state(grid).returned == Returned()

    def test_a_job_without_messages_gives_nothing_back(self, store: Outbox) -> None:
        grid = Grid.create(store, 3, ("a",))
        grid.begin("a", 0, owner="w")
        send_back(grid, "a", 0, is_open=True)
        assert state(grid) == OutboxState()
        grid.update(lambda job: replace(job, cancelled=Cancellation(None, store.now())))
        assert claim(grid).rows == IndexSet()
