"""Small documents of an outbox in Firestore: returned rows, claims of next stages, and values."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from firestore_kit import Documents, Spy, just_before_commits_of, written

from celery_statemanager import StoreUnavailable
from celery_statemanager.indexset import IndexSet
from celery_statemanager.records import Claimed, ClaimRequest, Delivery, Returned, Verdict, Write
from celery_statemanager.stores.firestore import FirestoreAddress, FirestoreStore
from celery_statemanager.stores.firestore.timings import Timings
from celery_statemanager.testing.contract_outbox import claim, create, rows, state
from celery_statemanager.testing.contract_returned import pause, published, send_back
from celery_statemanager.testing.kit import FAILED, FINISHED, Grid, purge

STAGES = ("a", "b")


@pytest.fixture
def store(spied: FirestoreStore) -> FirestoreStore:
    return spied


def end_stage(grid: Grid, row: int, publisher: str = "w", event_id: str = "end") -> IndexSet:
    """Finish the first stage of a row, and return the row that this claims."""
    end = Write.ending("a", row, FINISHED, attempt=1)
    end.publisher, end.next_is_due, end.value, end.event_id = publisher, True, str(row), event_id
    return grid.store.write(grid.ref, end).claimed


def test_two_claims_at_once_take_each_returned_row_once(store: FirestoreStore, other: FirestoreStore, spy: Spy) -> None:
    grid = published(store, 6)
    for row in (1, 3, 5):
        send_back(grid, "a", row)
    with just_before_commits_of(spy, "/outbox/state", lambda: claim(grid.seen_by(other), "q", 2)):
        assert claim(grid, "p", 2).rows == rows("5")
    assert {name: str(each.rows) for name, each in state(grid).claims.items()} == {
        "submitter": "0-5",
        "q": "1,3",
        "p": "5",
    }
    assert state(grid).returned == Returned()


def test_a_row_that_returns_during_a_claim_is_claimed_next(
    store: FirestoreStore, other: FirestoreStore, spy: Spy
) -> None:
    grid = published(store, 6, max_in_flight=3)
    with just_before_commits_of(spy, "/returned/2", lambda: send_back(grid.seen_by(other), "a", 0)):
        send_back(grid, "a", 2)
    assert state(grid).returned == Returned(waiting=rows("0,2"))
    with just_before_commits_of(spy, "/returned/0", lambda: send_back(grid.seen_by(other), "a", 1)):
        assert claim(grid, "p", 1).rows == rows("0")
    assert claim(grid, "p").rows == rows("1-2")


def test_a_row_that_returns_again_during_a_claim_is_claimed_with_its_new_kind(
    store: FirestoreStore, other: FirestoreStore, spy: Spy
) -> None:
    grid = published(store, 4)
    send_back(grid, "a", 1)

    def lose() -> None:
        elsewhere = grid.seen_by(other)
        elsewhere.begin("a", 1, delivery=Delivery(1), owner="w")
        send_back(elsewhere, "a", 1, is_open=True)

    with just_before_commits_of(spy, "/returned/1", lose):
        assert claim(grid) == Claimed(rows("1"), rows("1"), 0)
    assert state(grid).returned == Returned()


def test_more_returned_rows_than_one_claim_reads_are_claimed_before_others(store: FirestoreStore) -> None:
    grid = create(store, 1_000, max_in_flight=950)
    claim(grid, "submitter", 900)
    documents, run = Documents(store), f"jobs/job/runs/{grid.ref.incarnation}"
    documents.touch(f"{run}/outbox/state", returns=True)
    documents.put_all(
        {
            f"{run}/returned/{row}": {"order": row + 2**32 * (row < 800), "begun": row >= 800, "waiting": row < 800}
            for row in range(850)
        }
    )
    found = state(grid)
    assert found.returned == Returned(rows("800-849"), rows("0-799"))
    assert claim(grid, "p", 1_000) == Claimed(rows("0-249,800-849"), rows("0-249,800-849"), 100)
    assert claim(grid, "p", 10).rows == rows("250-259")
    assert [str(claim(grid, "p", 1_000).rows) for _ in range(3)] == ["260-559", "560-799,900-949", ""]


def test_a_begin_in_a_job_that_was_resumed_meanwhile_does_not_wait(
    store: FirestoreStore, other: FirestoreStore
) -> None:
    grid = published(store)
    pause(grid)
    assert grid.begin("a", 0, may_wait=True).verdict is Verdict.PAUSED
    pause(grid.seen_by(other), paused=False)
    assert grid.begin("a", 1, may_wait=True).verdict is Verdict.BEGUN, "the cached job is still paused"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_returned_row_whose_commit_was_lost_is_returned_once(store: FirestoreStore, spy: Spy, when: str) -> None:
    grid = published(store, 4, max_in_flight=4)
    left = iter([(when, grpc.StatusCode.UNAVAILABLE)])
    spy.fault = lambda method, request: next(left, None) if method == "Commit" else None
    send_back(grid, "a", 1)
    assert spy.lost == 1
    assert grid.cell("a", 1).delivery == Delivery(1)
    assert claim(grid) == Claimed(rows("1"), rows("1"), 0)
    assert claim(grid).rows == IndexSet()


def test_a_late_end_in_another_process_removes_the_row(store: FirestoreStore, other: FirestoreStore) -> None:
    grid = published(store, 4, max_in_flight=2)
    elsewhere = grid.seen_by(other)
    elsewhere.begin("a", 0, owner="w")
    send_back(grid, "a", 0, is_open=True)
    end = Write.ending("a", 0, FINISHED, attempt=1)
    end.publisher = "w"
    assert other.write(grid.ref, end).claimed == rows("2")
    assert Documents(store).ids(f"jobs/job/runs/{grid.ref.incarnation}/returned") == []


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("window", [None, 3])
def test_the_claim_of_a_next_stage_survives_a_lost_answer(
    store: FirestoreStore, spy: Spy, when: str, window: int | None
) -> None:
    grid = published(store, 4, STAGES, window)
    for row in (0, 1):
        grid.begin("a", row)
    left = iter([(when, grpc.StatusCode.UNAVAILABLE)])
    spy.fault = lambda method, request: next(left, None) if method == "Commit" else None
    assert end_stage(grid, 0) == rows("0")
    spy.fault = lambda method, request: (when, grpc.StatusCode.UNAVAILABLE)
    store._connection.timeout = 0.3
    with pytest.raises(StoreUnavailable):
        end_stage(grid, 1, event_id="other")
    spy.fault = lambda method, request: None
    store._connection.timeout = 10.0
    assert end_stage(grid, 1, event_id="other") == rows("1")
    assert end_stage(grid, 1, "another thread", event_id="other") == rows("1")
    assert end_stage(grid, 0) == IndexSet(), "the publisher has published that claim"
    assert state(grid).claims["w"].rows == rows("1")
    assert state(grid).claims["w"].at == state(grid).claims["w"].until == grid.cell("a", 1).timestamp


def test_a_publisher_that_is_alive_keeps_what_it_claims_during_a_takeover(
    store: FirestoreStore, other: FirestoreStore, spy: Spy
) -> None:
    grid = published(store, 4, STAGES)
    elsewhere = grid.seen_by(other)
    for row in (0, 1, 2):
        elsewhere.begin("a", row)
    end_stage(elsewhere, 0)
    with just_before_commits_of(spy, "/claims/w", lambda: end_stage(elsewhere, 1, event_id="1")):
        assert claim(grid, "sweeper", 0, dead=("w",)).rows == rows("1")
    end_stage(elsewhere, 2, event_id="2")
    assert {name: str(each.rows) for name, each in state(grid).claims.items()} == {
        "submitter": "0-3",
        "sweeper": "1",
        "w": "2",
    }


def test_the_newest_claim_of_a_publisher_counts_whatever_its_kind(store: FirestoreStore) -> None:
    grid = published(store, 6, STAGES, max_in_flight=2)
    for row in (0, 1):
        grid.begin("a", row)
    end_stage(grid, 0, "submitter")
    assert state(grid).claims["submitter"].rows == rows("0")
    grid.end("a", 1, FAILED, publisher="submitter")
    assert state(grid).claims["submitter"].rows == rows("2")
    documents = Documents(store)
    assert documents.ids(f"jobs/job/runs/{grid.ref.incarnation}/claims") == []
    grid.begin("a", 2)
    end_stage(grid, 2, "submitter", "2")
    request = ClaimRequest(publisher="sweeper", limit=0, ended=frozenset({"submitter"}))
    assert store.claim(grid.ref, request).rows == IndexSet()
    assert state(grid).claims == {}
    assert documents.ids(f"jobs/job/runs/{grid.ref.incarnation}/claims") == []


@pytest.mark.parametrize("publisher", ["host:1:abc/def", "..", "__w__", "50%"])
def test_a_publisher_may_have_any_name(store: FirestoreStore, publisher: str) -> None:
    grid = published(store, 2, STAGES)
    grid.begin("a", 0)
    end_stage(grid, 0, publisher)
    assert state(grid).claims[publisher].rows == rows("0")
    assert claim(grid, "sweeper", dead=(publisher,)).rows == rows("0")


def leave_everything(store: FirestoreStore, count: int) -> Grid:
    """Create a job with ``count`` values, returned rows and claims of next stages."""
    grid = published(store, 2 * count, STAGES)
    for row in range(count):
        grid.begin("a", row)
        end_stage(grid, row, f"w{row}", str(row))
        send_back(grid, "a", count + row)
    return grid


def test_a_deleted_job_leaves_neither_values_nor_rows(address: FirestoreAddress, store: FirestoreStore) -> None:
    grid, documents = leave_everything(store, 3), Documents(store)
    run = f"jobs/job/runs/{grid.ref.incarnation}"
    for collection in ("values", "returned", "claims"):
        assert len(documents.ids(f"{run}/{collection}")) == 3
    store.delete_job(grid.job)
    purge(store)
    with FirestoreStore(address, timings=Timings(purge_grace=-60.0)) as later:
        purge(later)
    for collection in ("values", "returned", "claims", "outbox", "blocks", "tallies", "states"):
        assert documents.ids(f"{run}/{collection}") == []


def test_a_purge_splits_what_the_service_rejects_as_too_large(store: FirestoreStore, spy: Spy) -> None:
    grid = leave_everything(store, 20)
    sizes: list[int] = []

    def reject(method: str, request: Any) -> tuple[Any, ...] | None:
        deletes = [name for name in written(request) if "/runs/" in name or "/states/" in name]
        sizes.append(len(deletes))
        if len(deletes) > 7:
            return "before", grpc.StatusCode.INVALID_ARGUMENT, "Transaction too big. Decrease transaction size."
        return None

    store.delete_job(grid.job)
    spy.fault = reject
    purge(store)
    assert max(sizes) > 7
    spy.fault = lambda method, request: None
    documents, run = Documents(store), f"jobs/job/runs/{grid.ref.incarnation}"
    assert [documents.ids(f"{run}/{each}") for each in ("values", "returned", "claims", "tallies")] == [[]] * 4
    assert documents.ids("jobs/job/states") == []


def test_large_values_are_purged_in_several_commits(store: FirestoreStore, spy: Spy) -> None:
    grid = published(store, 130, STAGES)
    for row in range(130):
        grid.write("a", row, FINISHED, value="x" * 500_000 if row < 3 else "1")
    store.delete_job(grid.job)
    spy.clear()
    purge(store)
    deleted = [sum("/values/" in name for name in written(request)) for request in spy.requests]
    assert sorted(filter(None, deleted)) == [30, 100]


def test_a_value_of_another_programs_job_is_not_stored(store: FirestoreStore) -> None:
    Documents(store).put("jobs/go", numTasks=3, deleted=False)
    grid = Grid(store, store.list_jobs().jobs[0].ref)
    grid.write("a", 0, FINISHED, value="1")
    assert store.get_value(grid.ref, 0) is None
    assert store.get_value(grid.ref._replace(incarnation="0" * 32), 0) is None
