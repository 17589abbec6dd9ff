"""The outbox of the Firestore store: parts of blocks, drafts that end, and claims beside other changes of a job."""

from __future__ import annotations

import random
import threading
from collections import deque
from dataclasses import replace
from typing import Any

import grpc
import pytest
from firestore_kit import Documents, Spy, just_before_commits_of, written

from celery_statemanager import StoreError, StoreUnavailable
from celery_statemanager.indexset import IndexSet
from celery_statemanager.records import Claimed, Flow, JobRecord
from celery_statemanager.stores.firestore import FirestoreAddress, FirestoreStore
from celery_statemanager.stores.firestore.blocks import PART_SIZE
from celery_statemanager.stores.firestore.timings import Timings
from celery_statemanager.testing.contract_outbox import claim, create, draft, rows, state
from celery_statemanager.testing.kit import FAILED, FINISHED, purge

HURRIED = Timings(claim_every=3_600.0, claim_burst=-3_600.0, claim_pause=3_600.0)
"""Timings under which each end leaves its room to a later one if it may."""


@pytest.fixture
def store(spied: FirestoreStore) -> FirestoreStore:
    return spied


def add(store: FirestoreStore, job: JobRecord, lease: float = 60.0) -> None:
    """Store the messages of a job."""
    store.add_block(job.ref, 0, b"messages", lease)


def expected(text: str, left: int) -> Claimed:
    """Return the reply to a claim of some rows."""
    return Claimed(rows(text), IndexSet(), left)


@pytest.mark.parametrize("size", [0, 1, PART_SIZE - 1, PART_SIZE, PART_SIZE + 1, 6 * PART_SIZE])
def test_a_block_of_any_size_is_stored_in_parts(store: FirestoreStore, size: int) -> None:
    job, data = draft(), random.Random(size).randbytes(size)
    store.add_block(job.ref, 0, data, 60)
    assert store.get_block(job.ref, 2) == (0, data)
    parts = Documents(store).ids(f"jobs/job/runs/{job.incarnation}/blocks")
    assert len(parts) == max(1, -(-size // PART_SIZE))


def test_a_block_that_shrinks_leaves_no_part_of_its_old_content(store: FirestoreStore) -> None:
    job = draft()
    for size in (3 * PART_SIZE, PART_SIZE + 5, 7, 2 * PART_SIZE):
        data = random.Random(size).randbytes(size)
        store.add_block(job.ref, 0, data, 60)
        assert store.get_block(job.ref, 0) == (0, data)


def test_a_block_cannot_be_found_before_all_its_parts_are_stored(store: FirestoreStore, spy: Spy) -> None:
    job = draft()
    spy.fault = lambda method, request: (
        ("before", grpc.StatusCode.UNAVAILABLE) if any(name.endswith("/0") for name in written(request)) else None
    )
    store._connection.timeout = 0.3
    with pytest.raises(StoreUnavailable):
        store.add_block(job.ref, 0, bytes(6 * PART_SIZE), 60)
    assert store.get_block(job.ref, 0) is None
    assert Documents(store).ids("jobs_drafts") == [job.incarnation], "the parts are found when its lease ends"
    assert store.drop_expired_drafts() == 0


def test_a_draft_dropped_while_its_job_is_created_prevents_the_job(
    store: FirestoreStore, other: FirestoreStore, spy: Spy
) -> None:
    job = draft()
    add(store, job, 0.0)
    with just_before_commits_of(spy, "/jobs/job", other.drop_expired_drafts):
        with pytest.raises(StoreError, match="its stored messages were deleted"):
            store.create_job(job)
    assert other.list_jobs().jobs == []
    assert store.get_block(job.ref, 0) is None


@pytest.mark.parametrize("action", ["create", "extend"])
def test_a_draft_that_is_created_or_extended_meanwhile_is_not_dropped(
    store: FirestoreStore, other: FirestoreStore, spy: Spy, action: str
) -> None:
    job = draft()
    add(store, job, 0.0)
    actions = {"create": lambda: other.create_job(job), "extend": lambda: other.add_block(job.ref, 2, b"more", 60)}
    with just_before_commits_of(spy, f"/jobs_drafts/{job.incarnation}", actions[action]):
        assert store.drop_expired_drafts() == 0
    assert purge(store) == 0
    assert store.get_block(job.ref, 0) == (0, b"messages")
    if action == "extend":
        store.create_job(job)
    assert store.get_job(job.key).incarnation == job.incarnation


@pytest.mark.parametrize("expired", [True, False])
def test_a_block_that_arrives_after_its_job_was_created_does_not_endanger_the_job(
    store: FirestoreStore, expired: bool
) -> None:
    job = draft()
    add(store, job)
    store.create_job(job)
    add(store, job, 0.0)  # the same commit, delayed by the network
    if expired:
        assert store.drop_expired_drafts() == 0
    else:
        store.drop_draft(job.ref)
    assert Documents(store).ids("jobs_drafts") == []
    purge(store)
    assert store.get_block(job.ref, 1) == (0, b"messages")


@pytest.mark.parametrize("expired", [True, False])
def test_a_process_that_dies_while_it_drops_a_draft_leaves_nothing(
    store: FirestoreStore, other: FirestoreStore, spy: Spy, expired: bool
) -> None:
    job = draft(1_000)
    for first in range(0, 1_000, 40):
        store.add_block(job.ref, first, b"messages", 0.0)
    store._connection.timeout = 0.3
    dropped: list[str] = []

    def die_after_the_draft_was_deleted(method: str, request: Any) -> tuple[str, grpc.StatusCode] | None:
        if dropped:
            return "before", grpc.StatusCode.UNAVAILABLE
        dropped.extend(name for name in written(request) if name.endswith(f"/jobs_drafts/{job.incarnation}"))
        return None

    spy.fault = die_after_the_draft_was_deleted
    if expired:
        assert store.drop_expired_drafts() == 1
    else:
        store.drop_draft(job.ref)
    assert dropped
    documents = Documents(other)
    assert len(documents.ids(f"jobs/job/runs/{job.incarnation}/blocks")) == 25
    assert purge(other, 7) == 25, "in bounded steps"
    assert documents.ids(f"jobs/job/runs/{job.incarnation}/blocks") == []
    with FirestoreStore(store._connection.address, timings=Timings(purge_grace=-60.0)) as later:
        purge(later)
    assert documents.ids("jobs_garbage") == []


def test_a_deleted_job_leaves_neither_blocks_nor_claims(address: FirestoreAddress, store: FirestoreStore) -> None:
    grid = create(store, 3, max_in_flight=1)
    claim(grid)
    documents, run = Documents(store), f"jobs/job/runs/{grid.ref.incarnation}"
    assert (documents.ids(f"{run}/blocks"), documents.ids(f"{run}/outbox")) == (["0"], ["state"])
    store.delete_job(grid.job)
    assert documents.ids(f"{run}/outbox") == []
    with FirestoreStore(address, timings=Timings(purge_grace=-60.0)) as later:
        purge(later)
    assert documents.ids(f"{run}/blocks") == documents.ids("jobs_garbage") == documents.ids("jobs_drafts") == []


def test_two_publishers_at_once_claim_different_rows(store: FirestoreStore, other: FirestoreStore, spy: Spy) -> None:
    grid = create(store, 5, max_in_flight=4)
    with just_before_commits_of(spy, "/outbox/state", lambda: claim(grid.seen_by(other), "q", 3)):
        assert claim(grid, "p", 3) == expected("3", 1)
    assert {name: each.rows for name, each in state(grid).claims.items()} == {"q": rows("0-2"), "p": rows("3")}


def test_a_row_that_ends_during_a_claim_makes_room_once(store: FirestoreStore, other: FirestoreStore, spy: Spy) -> None:
    grid = create(store, 6, max_in_flight=2)
    elsewhere = grid.seen_by(other)
    claim(grid, "submitter")
    for row in (0, 1):
        elsewhere.begin("a", row)
    elsewhere.end("a", 0)
    ended: list[IndexSet] = []
    with just_before_commits_of(
        spy, "/outbox/state", lambda: ended.append(elsewhere.end("a", 1, publisher="w").claimed)
    ):
        assert claim(grid, "sweeper") == expected("", 2)
    assert ended == [rows("2-3")]
    assert {name: each.rows for name, each in state(grid).claims.items()} == {
        "submitter": rows("0-1"),
        "w": rows("2-3"),
    }


def test_a_claim_during_the_end_of_a_row_leaves_the_rest_of_the_room(
    store: FirestoreStore, other: FirestoreStore, spy: Spy
) -> None:
    grid = create(store, 6, max_in_flight=3)
    claim(grid, "submitter")
    grid.run("a", 1)
    grid.begin("a", 0)
    with just_before_commits_of(spy, "/outbox/state", lambda: claim(grid.seen_by(other), "sweeper", 1)):
        assert grid.end("a", 0, publisher="w").claimed == rows("4")
    assert state(grid).claims["sweeper"].rows == rows("3")


@pytest.mark.parametrize("publisher", [None, "w"])
def test_a_job_cancelled_during_a_claim_publishes_nothing(
    store: FirestoreStore, other: FirestoreStore, spy: Spy, publisher: str | None
) -> None:
    grid = create(store, 3, max_in_flight=1)
    claim(grid)
    grid.begin("a", 0)
    grid.begin("a", 1)
    if publisher is None:
        grid.end("a", 0)
    with just_before_commits_of(spy, "/outbox/state", grid.seen_by(other).cancel):
        if publisher is None:
            assert claim(grid) == Claimed(IndexSet(), IndexSet(), 2)
        else:
            assert grid.end("a", 0, publisher=publisher).claimed == IndexSet()
    assert state(grid).claimed == 1


def test_a_window_that_shrinks_during_a_claim_is_respected(
    store: FirestoreStore, other: FirestoreStore, spy: Spy
) -> None:
    grid = create(store, 9, max_in_flight=5)
    elsewhere = grid.seen_by(other)

    def shrink() -> None:
        elsewhere.update(lambda job: replace(job, flow=Flow(2)))

    with just_before_commits_of(spy, "/outbox/state", shrink):
        assert claim(grid) == expected("0-1", 7)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("lost", [1, 2])
def test_a_claim_whose_response_is_lost_is_made_once(store: FirestoreStore, spy: Spy, when: str, lost: int) -> None:
    grid = create(store, 40, max_in_flight=30)
    claim(grid, "dead", 2)
    for number in range(4):
        left = iter([(when, grpc.StatusCode.UNAVAILABLE)] * lost)
        spy.fault = lambda method, request, left=left: next(left, None) if method == "Commit" else None
        first = 2 + 5 * number
        taken = claim(grid, "p", 5, dead=("dead",))
        assert taken.rows.without(taken.again) == IndexSet(range(first, first + 5))
        assert taken.again == (rows("0-1") if number == 0 else IndexSet())
        assert taken.left == 40 - first - 5
        assert state(grid).claims["p"].rows == taken.rows
    grid.begin("a", 0)
    spy.fault = lambda method, request: (when, grpc.StatusCode.UNAVAILABLE) if next(left, None) else None
    left = iter([False, True, True])
    assert grid.end("a", 0, publisher="w").claimed == state(grid).claims["w"].rows == rows("22-30")


def test_an_end_whose_claim_fails_claims_when_it_is_repeated(store: FirestoreStore, spy: Spy) -> None:
    grid = create(store, 3, ("a", "b"), max_in_flight=1)
    claim(grid)
    grid.run("a", 0)
    grid.begin("b", 0)

    def lose_claims(method: str, request: Any) -> tuple[str, grpc.StatusCode] | None:
        store._connection.timeout = 0.3
        lost = any(name.endswith("/outbox/state") for name in written(request))
        return ("before", grpc.StatusCode.UNAVAILABLE) if lost else None

    spy.fault = lose_claims
    with pytest.raises(StoreUnavailable):
        grid.end("b", 0, publisher="w", event_id="end")
    assert grid.cell("b", 0).final
    spy.fault = lambda method, request: None
    again = grid.write("b", 0, FINISHED, attempt=1, ends_attempt=True, publisher="w", event_id="end")
    assert (again.changed, again.claimed) == (False, rows("1"))
    grid.update(lambda job: replace(job, flow=Flow(2)))
    again = grid.write("b", 0, FINISHED, attempt=1, ends_attempt=True, publisher="w", event_id="end")
    assert (again.changed, again.claimed) == (False, IndexSet([1])), "only what it has claimed before"


def test_a_decided_latch_is_returned_although_the_claim_fails(store: FirestoreStore, spy: Spy) -> None:
    grid = create(store, 3, max_in_flight=1)
    claim(grid)
    grid.begin("a", 0)
    cell = grid.cell("a", 0)

    def lose_claims(method: str, request: Any) -> tuple[str, grpc.StatusCode] | None:
        store._connection.timeout = 0.3
        names = written(request)
        return ("before", grpc.StatusCode.UNAVAILABLE) if len(names) == 1 and names[0].endswith("state") else None

    spy.fault = lose_claims
    reply = grid.end("a", 0, FAILED, attempt=cell.attempt, publisher="w")
    assert (reply.decided, reply.claimed) == (("failure",), IndexSet())


@pytest.mark.parametrize("timings", [HURRIED])
@pytest.mark.parametrize(("window", "batches"), [(1, 60), (2, 60), (3, 31), (20, 7)])
def test_rows_that_end_fast_claim_in_batches_and_all_are_claimed(
    store: FirestoreStore, spy: Spy, window: int, batches: int
) -> None:
    grid = create(store, 60, max_in_flight=window)
    waiting = deque(claim(grid).rows)
    spy.clear()
    done = []
    while waiting:
        row = waiting.popleft()
        grid.begin("a", row)
        waiting.extend(grid.end("a", row, publisher="w").claimed)
        done.append(row)
        assert len(waiting) <= window
    assert done == list(range(60))
    assert spy.writes_of("/outbox/state") <= batches


def test_rows_that_end_slowly_claim_at_each_end(store: FirestoreStore) -> None:
    grid = create(store, 30, max_in_flight=10)
    claim(grid)
    for row in range(15):
        grid.begin("a", row)
        assert grid.end("a", row, publisher="w").claimed == IndexSet([10 + row])


@pytest.mark.parametrize("timings", [replace(HURRIED, claim_pause=0.0)])
def test_no_room_is_left_while_no_published_row_waits_to_begin(store: FirestoreStore) -> None:
    grid = create(store, 30, max_in_flight=10)
    for row in claim(grid).rows:
        grid.begin("a", row)
    assert grid.end("a", 0, publisher="w").claimed == rows("10")
    assert grid.end("a", 1, publisher="w").claimed == IndexSet(), "row 10 waits"
    grid.begin("a", 10)
    assert grid.end("a", 2, publisher="w").claimed == rows("11-12")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("hurried", [True, False])
@pytest.mark.parametrize(("window", "processes"), [(1, 3), (5, 4), (12, 6)])
def test_processes_that_end_rows_at_once_claim_every_row_once_within_the_window(
    address: FirestoreAddress, store: FirestoreStore, window: int, processes: int, hurried: bool
) -> None:
    grid = create(store, 60, ("a", "b"), max_in_flight=window)
    waiting, seen = deque(claim(grid, "submitter").rows), threading.Condition()
    out, claimed, failures = set(waiting), list(waiting), []

    def work(number: int) -> None:
        timings = HURRIED if hurried else Timings()
        with FirestoreStore(address, timeout=30.0, timings=timings) as mine:
            elsewhere = grid.seen_by(mine)
            while True:
                with seen:
                    seen.wait_for(lambda: waiting or not out, 60.0)
                    if not waiting:
                        return
                    row = waiting.popleft()
                fails = row % 5 == 0
                if not fails:
                    elsewhere.run("a", row)
                tag = "a" if fails else "b"
                elsewhere.begin(tag, row)
                with seen:
                    out.discard(row)
                status = FAILED if fails else FINISHED
                reply = elsewhere.end(tag, row, status, publisher=f"w{number}")
                with seen:
                    waiting.extend(reply.claimed)
                    out.update(reply.claimed)
                    claimed.extend(reply.claimed)
                    if len(out) > window:
                        failures.append(f"{len(out)} rows are in flight")
                    seen.notify_all()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert sorted(claimed) == list(range(60))
    assert grid.job.settled
