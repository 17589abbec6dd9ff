"""The outbox: blocks of messages, drafts, claims and the number of rows in flight (rule R19)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from celery_statemanager.errors import JobExists, JobNotFound, StoreError
from celery_statemanager.garbage import collect_garbage
from celery_statemanager.indexset import IndexSet
from celery_statemanager.manager import Manager
from celery_statemanager.plan import PlanSpec
from celery_statemanager.records import Claim, Claimed, ClaimRequest, Flow, JobRecord, OutboxState, When, new_job
from celery_statemanager.stores.capabilities import Outbox
from celery_statemanager.testing.contract_fixtures import ContractFixtures
from celery_statemanager.testing.kit import FAILED, FINISHED, FakeClock, Grid, every_job, purge, smoke

NONE = Claimed(IndexSet(), IndexSet(), 0)


def draft(
    num_tasks: int = 3, tags: PlanSpec = ("a",), max_in_flight: int | None = None, job_id: str = "job"
) -> JobRecord:
    """Return the record of a job that owns its messages."""
    return replace(new_job(job_id, num_tasks, tags), flow=Flow(max_in_flight))


def create(
    store: Outbox, num_tasks: int = 3, tags: PlanSpec = ("a",), max_in_flight: int | None = None, job_id: str = "job"
) -> Grid:
    """Create a job with one block of messages. None of its rows is claimed."""
    return Grid.submitted(store, num_tasks, tags, job_id, published=0, flow=Flow(max_in_flight))


def claim(
    grid: Grid, publisher: str = "p", limit: int = 100, lease: float = 0.0, dead: tuple[str, ...] = ()
) -> Claimed:
    """Claim rows of a job."""
    store = grid.store
    assert isinstance(store, Outbox)
    return store.claim(grid.ref, ClaimRequest(publisher=publisher, limit=limit, lease=lease, dead=frozenset(dead)))


def state(grid: Grid) -> OutboxState:
    """Return which rows of a job are claimed."""
    store = grid.store
    assert isinstance(store, Outbox)
    return store.get_outbox(grid.ref)


def rows(text: str) -> IndexSet:
    """Return the rows that a text names."""
    return IndexSet.parse(text)


class ClaimContract(ContractFixtures):
    """Tests of blocks, drafts and claims."""

    @smoke
    def test_a_block_is_found_by_each_of_its_rows(self, store: Outbox) -> None:
        job = draft(10)
        assert store.get_block(job.ref, 0) is None
        contents = {0: b"first", 3: bytes(range(256)), 7: b""}
        for first, data in contents.items():
            store.add_block(job.ref, first, data, 60)
        store.create_job(job)
        found = [store.get_block(job.ref, row) for row in range(10)]
        assert found == [(first, contents[first]) for first in (0, 0, 0, 3, 3, 3, 3, 7, 7, 7)]

    def test_blocks_with_equal_content_are_kept_apart(self, store: Outbox) -> None:
        job = draft(300)
        for first in range(0, 300, 100):
            store.add_block(job.ref, first, b"same", 60)
        assert [store.get_block(job.ref, row) for row in (99, 100, 250)] == [
            (0, b"same"),
            (100, b"same"),
            (200, b"same"),
        ]

    def test_a_block_that_is_added_again_replaces_the_first(self, store: Outbox) -> None:
        job = draft()
        for data in (b"one", b"two"):
            store.add_block(job.ref, 0, data, 60)
        assert store.get_block(job.ref, 2) == (0, b"two")

    def test_a_large_block_is_stored_whole(self, store: Outbox) -> None:
        job, data = draft(), bytes(range(256)) * 12_000  # 3 MB, more than the limit of a document in any store
        store.add_block(job.ref, 0, data, 60)
        store.add_block(job.ref, 2, b"small", 60)
        store.create_job(job)
        assert store.get_block(job.ref, 1) == (0, data)
        assert store.get_block(job.ref, 2) == (2, b"small")

    @smoke
    def test_a_draft_is_invisible_and_blocks_no_other_job(self, store: Outbox) -> None:
        mine, other = draft(), draft()
        store.add_block(mine.ref, 0, b"mine", 60)
        store.add_block(other.ref, 0, b"other", 60)
        with pytest.raises(JobNotFound):
            store.get_job(mine.key)
        assert list(every_job(store)) == []
        store.create_job(other)
        with pytest.raises(JobExists):
            store.create_job(mine)
        store.drop_draft(mine.ref)
        store.drop_draft(mine.ref)
        assert store.get_block(mine.ref, 0) is None
        assert store.get_block(other.ref, 0) == (0, b"other")
        assert store.get_job(mine.key).incarnation == other.incarnation

    def test_a_job_cannot_be_created_without_its_messages(self, store: Outbox) -> None:
        job = draft()
        with pytest.raises(StoreError, match="its stored messages were deleted"):
            store.create_job(job)
        store.add_block(job.ref, 0, b"messages", 60)
        store.drop_draft(job.ref)
        with pytest.raises(StoreError, match="its stored messages were deleted"):
            store.create_job(job)
        with pytest.raises(JobNotFound):
            store.get_job(job.key)
        store.create_job(replace(job, flow=None))

    def test_a_dropped_draft_takes_no_further_block(self, store: Outbox) -> None:
        job = draft(300)
        store.add_block(job.ref, 0, b"first", 0)
        assert store.drop_expired_drafts() == 1
        with pytest.raises(StoreError, match="its stored messages were deleted"):
            store.add_block(job.ref, 100, b"second", 60)
        with pytest.raises(StoreError, match="its stored messages were deleted"):
            store.create_job(job)
        assert store.get_block(job.ref, 100) is None

    @smoke
    def test_only_drafts_whose_lease_has_ended_are_dropped(self, store: Outbox) -> None:
        expired, kept, accepted = (draft(job_id=name) for name in ("expired", "kept", "accepted"))
        for job in (expired, kept, accepted):
            store.add_block(job.ref, 0, b"messages", 0 if job is not kept else 60)
        store.create_job(accepted)
        assert store.drop_expired_drafts() == 1
        assert store.drop_expired_drafts() == 0
        assert [store.get_block(job.ref, 0) is not None for job in (expired, kept, accepted)] == [False, True, True]
        with pytest.raises(StoreError, match="its stored messages were deleted"):
            store.create_job(expired)
        store.create_job(kept)

    def test_each_block_extends_the_lease_of_a_draft(self, clocked_store: Outbox, clock: FakeClock) -> None:
        job = draft()
        clocked_store.add_block(job.ref, 0, b"one", 30)
        clock.advance(29)
        clocked_store.add_block(job.ref, 1, b"two", 30)
        clock.advance(29)
        assert clocked_store.drop_expired_drafts() == 0
        clock.advance(2)
        assert clocked_store.drop_expired_drafts() == 1

    def test_a_deleted_job_leaves_no_blocks(self, store: Outbox) -> None:
        grid = create(store)
        claim(grid)
        ref = grid.ref
        grid.delete()
        assert store.get_block(ref, 0) is None
        with pytest.raises(JobNotFound):
            store.get_outbox(ref)
        with pytest.raises(JobNotFound):
            store.claim(ref, ClaimRequest(publisher="p", limit=1))
        assert purge(store) == 0

    @smoke
    def test_rows_are_claimed_in_order_once(self, store: Outbox) -> None:
        grid = create(store, 5)
        assert state(grid) == OutboxState()
        assert claim(grid, "p", 2, 30) == Claimed(rows("0-1"), IndexSet(), 3)
        assert claim(grid, "q", 2) == Claimed(rows("2-3"), IndexSet(), 1)
        found = state(grid)
        assert found.claimed == 4
        assert {name: each.rows for name, each in found.claims.items()} == {"p": rows("0-1"), "q": rows("2-3")}
        assert found.claims["p"].until - found.claims["p"].at == 30_000_000
        assert found.claims["q"].until == found.claims["q"].at
        assert claim(grid, "p", 2) == Claimed(rows("4"), IndexSet(), 0)
        assert state(grid).claims["p"].rows == rows("4"), "an earlier claim was published"
        assert claim(grid, "p", 2) == NONE
        assert state(grid).claims.keys() == {"q"}

    def test_the_claims_of_dead_publishers_are_taken_over(self, store: Outbox) -> None:
        grid = create(store, 6)
        claim(grid, "dead", 2)
        claim(grid, "alive", 1)
        claim(grid, "gone", 1)
        taken = claim(grid, "sweeper", 1, 60, dead=("dead", "gone", "unknown"))
        assert taken == Claimed(rows("0-1,3-4"), rows("0-1,3"), 1)
        assert {name: each.rows for name, each in state(grid).claims.items()} == {
            "alive": rows("2"),
            "sweeper": rows("0-1,3-4"),
        }
        assert claim(grid, "sweeper", 0, dead=("dead",)) == Claimed(IndexSet(), IndexSet(), 1)
        assert state(grid) == OutboxState(5, {"alive": state(grid).claims["alive"]})

    @smoke
    def test_at_most_the_permitted_number_of_rows_is_in_flight(self, store: Outbox) -> None:
        grid = create(store, 6, max_in_flight=3)
        assert claim(grid) == Claimed(rows("0-2"), IndexSet(), 3)
        assert claim(grid) == Claimed(IndexSet(), IndexSet(), 3)
        grid.begin("a", 0)
        assert claim(grid).rows == IndexSet()
        grid.end("a", 0)
        assert claim(grid).rows == rows("3")
        grid.run("a", 1, FAILED)
        grid.write("a", 2, FAILED, when=When.IDLE)
        assert claim(grid).rows == rows("4-5")

    def test_a_row_is_in_flight_until_its_last_stage_has_ended(self, store: Outbox) -> None:
        grid = create(store, 4, {"a": range(4), "b": range(3)}, max_in_flight=1)
        assert claim(grid).rows == rows("0")
        grid.run("a", 0)
        assert claim(grid).rows == IndexSet()
        grid.run("b", 0)
        assert claim(grid).rows == rows("1")
        grid.run("a", 1, FAILED)
        assert claim(grid).rows == rows("2"), "the later stages of a failed row do not run"
        grid.begin("a", 1)
        grid.run("a", 2, FAILED)
        assert claim(grid).rows == IndexSet(), "row 1 is in flight again"
        grid.end("a", 1, FAILED)
        assert claim(grid).rows == rows("3")
        grid.run("a", 3)
        assert claim(grid) == NONE

    def test_a_smaller_window_claims_nothing_until_there_is_room(self, store: Outbox) -> None:
        grid = create(store, 6, max_in_flight=3)
        claim(grid)
        grid.update(lambda job: replace(job, flow=Flow(1)))
        assert grid.job.flow == Flow(1)
        for row, expected in ((0, ""), (1, ""), (2, "3")):
            grid.run("a", row)
            assert str(claim(grid).rows) == expected
        grid.update(lambda job: replace(job, flow=Flow()))
        assert claim(grid).rows == rows("4-5")

    @smoke
    def test_the_end_of_a_row_claims_the_next_one(self, store: Outbox) -> None:
        grid = create(store, 5, ("a", "b"), max_in_flight=2)
        claim(grid, "submitter")
        grid.begin("a", 0)
        assert grid.end("a", 0, publisher="w").claimed == IndexSet()
        grid.begin("b", 0)
        assert grid.write("b", 0, 40, attempt=1, publisher="w").claimed == IndexSet()
        assert grid.end("b", 0, publisher="w").claimed == rows("2")
        grid.begin("a", 1)
        assert grid.end("a", 1, FAILED).claimed == IndexSet(), "without a publisher"
        grid.begin("a", 2)
        assert grid.end("a", 2, FAILED, publisher="v").claimed == rows("3-4")
        assert {name: each.rows for name, each in state(grid).claims.items()} == {
            "submitter": rows("0-1"),
            "w": rows("2"),
            "v": rows("3-4"),
        }

    def test_a_repeated_end_returns_what_the_first_one_has_claimed(self, store: Outbox) -> None:
        grid = create(store, 4, max_in_flight=2)
        claim(grid, "submitter")
        for row in (0, 1):
            grid.begin("a", row)
        first = grid.end("a", 0, publisher="w", event_id="0" * 32)
        assert (first.changed, first.claimed) == (True, rows("2"))
        for publisher in ("w", "another thread"):
            again = grid.write("a", 0, FINISHED, attempt=1, ends_attempt=True, publisher=publisher, event_id="0" * 32)
            assert (again.changed, again.claimed) == (False, rows("2"))
        assert grid.end("a", 1, publisher="w", event_id="1" * 32).claimed == rows("3")
        again = grid.write("a", 0, FINISHED, attempt=1, ends_attempt=True, publisher="w", event_id="0" * 32)
        assert again.claimed == IndexSet(), "the publisher has published that claim"
        assert state(grid).claimed == 4

    def test_an_end_claims_nothing_without_a_window(self, store: Outbox) -> None:
        grid = create(store, 3)
        claim(grid, limit=1)
        grid.begin("a", 0)
        assert grid.end("a", 0, publisher="w").claimed == IndexSet()
        assert state(grid).claimed == 1

    def test_a_cancelled_job_has_nothing_to_claim(self, store: Outbox) -> None:
        grid = create(store, 3, max_in_flight=1)
        claim(grid)
        grid.begin("a", 0)
        grid.cancel()
        assert claim(grid).rows == IndexSet()
        assert grid.end("a", 0, publisher="w").claimed == IndexSet()
        assert claim(grid) == NONE

    def test_a_job_without_messages_has_nothing_to_claim(self, store: Outbox) -> None:
        grid = Grid.create(store, 3, ("a",))
        assert claim(grid) == NONE
        assert state(grid) == OutboxState()

    @smoke
    def test_a_job_with_messages_is_due_until_it_settles(self, store: Outbox) -> None:
        grids = [create(store, 1, job_id=name) for name in ("open", "done", "cancelled")]
        Grid.create(store, 1, ("a",), job_id="without")
        grids[1].run("a", 0)
        grids[2].cancel()
        assert [job.job_id for job in every_job(store, due=True)] == ["open"]

    def test_a_claim_is_not_changed_by_its_reader(self, store: Outbox) -> None:
        grid = create(store)
        claim(grid)
        found = state(grid)
        assert isinstance(found.claims, dict)
        found.claims["other"] = Claim(rows("2"), 0)
        assert state(grid).claims.keys() == {"p"}

    def test_a_write_to_a_tombstoned_job_revives_it_at_the_next_collection(self, store: Outbox) -> None:
        with Manager.create(store, "job", num_tasks=2, task_index=0, tags=("a",)) as manager:
            manager.set_state("a", 5)
            manager.tombstone_job()
            assert collect_garbage(store, tombstone_age="30d", delete_age="90d").revived == 0
            manager.set_state("a", 6)
            assert collect_garbage(store, tombstone_age="30d", delete_age="90d").revived == 1
            assert store.get_job(manager.ref.key).tombstoned_at is None
