"""Generations in Firestore: resets beside other changes of a job, and processes whose cached job is outdated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from firestore_kit import Documents, Spy, just_before_commits_of, written

from celery_statemanager.indexset import IndexSet
from celery_statemanager.records import Delivery, Generation, Reset, Returned, Verdict, When, Write
from celery_statemanager.stores.firestore import FirestoreAddress, FirestoreStore
from celery_statemanager.stores.firestore.timings import Timings
from celery_statemanager.testing.contract_outbox import claim, rows, state
from celery_statemanager.testing.contract_rerun import AGAIN, end_reset, rerun, reset, settle
from celery_statemanager.testing.contract_returned import published, send_back
from celery_statemanager.testing.kit import CANCELLED, FAILED, FINISHED, Grid


@pytest.fixture
def timings() -> Timings:
    """Return timings that let a process use its cached job during a whole test."""
    return Timings(job_memory=3_600.0)


@pytest.fixture
def store(spied: FirestoreStore) -> FirestoreStore:
    """Return a store whose calls a test may count or change."""
    return spied


@pytest.fixture
def other(address: FirestoreAddress, timings: Timings) -> Iterator[FirestoreStore]:
    """Yield the store of another process, with a cache of its own."""
    with FirestoreStore(address, timeout=10.0, timings=timings) as other:
        yield other


def rerun_when_cancelled(grid: Grid, other: FirestoreStore, chosen: str) -> Grid:
    """Cancel a job and rerun some of its rows. Return it in a process whose cached job is still cancelled."""
    grid.cancel("enough")
    elsewhere = grid.seen_by(other)
    assert elsewhere.job.cancelled is not None
    rerun(grid, chosen)
    return elsewhere


def reset_in(elsewhere: Grid, row: int, generation: int = 2) -> bool:
    """Reset a row without reading its job first."""
    assert isinstance(elsewhere.store, FirestoreStore)
    return elsewhere.store.reset_row(elsewhere.ref, Reset(tag="a", task_index=row, generation=generation))


def test_a_row_is_reset_although_the_cached_job_is_cancelled(store: FirestoreStore, other: FirestoreStore) -> None:
    grid = published(store)
    elsewhere = rerun_when_cancelled(grid, other, "0-1")
    assert reset_in(elsewhere, 1)
    assert grid.cell("a", 1).generation == 2


@pytest.mark.parametrize("resetting", [True, False])
def test_a_row_is_not_reset_although_the_cached_job_is_not_cancelled(
    store: FirestoreStore, other: FirestoreStore, resetting: bool
) -> None:
    grid = published(store)
    grid.run("a", 0, FAILED)
    rerun(grid, "0-1")
    if not resetting:
        end_reset(grid)
    elsewhere = grid.seen_by(other)
    assert elsewhere.job.cancelled is None
    grid.cancel()
    before = [grid.cell("a", row) for row in (0, 1)]
    assert [reset_in(elsewhere, row) for row in (0, 1)] == [False, False]
    assert [grid.cell("a", row) for row in (0, 1)] == before
    assert state(grid).returned == Returned()


def test_a_waiting_row_is_not_reset_if_its_job_is_cancelled_meanwhile(
    store: FirestoreStore, other: FirestoreStore, spy: Spy
) -> None:
    grid = published(store)
    rerun(grid, "1")
    with just_before_commits_of(spy, "/states/a:1", lambda: grid.seen_by(other).cancel()):
        assert not reset(grid, "a", 1)
    assert grid.cell("a", 1).version == 0


def test_a_retry_begins_although_the_cached_job_is_cancelled(store: FirestoreStore, other: FirestoreStore) -> None:
    grid = published(store)
    grid.seen_by(other).begin("a", 0, owner="w")
    other.write(grid.ref, Write.returned("a", 0, "retry", Delivery(0, 0, 1), attempt=1))
    elsewhere = rerun_when_cancelled(grid, other, "1")
    assert elsewhere.begin("a", 0, owner="w", delivery=Delivery(0, 0, 1)).verdict is Verdict.BEGUN


def test_a_message_is_due_again_although_the_cached_job_is_cancelled(
    store: FirestoreStore, other: FirestoreStore
) -> None:
    grid = published(store)
    for row in (0, 1):
        grid.seen_by(other).begin("a", row, owner="w")
    other.write(grid.ref, Write.returned("a", 1, "retry", attempt=1))
    elsewhere = rerun_when_cancelled(grid, other, "2")
    other.write(grid.ref, Write.sent_back("a", 0, "sent again", attempt=1, is_open=True))
    other.write(grid.ref, Write.sent_back("a", 1, "sent again", attempt=1))
    assert [grid.cell("a", row).status for row in (0, 1)] == [1, 1]
    assert state(elsewhere).returned == Returned(begun=rows("0-1"))


def test_a_next_stage_is_claimed_although_the_cached_job_is_cancelled(
    store: FirestoreStore, other: FirestoreStore
) -> None:
    grid = published(store, tags=("a", "b"))
    grid.seen_by(other).begin("a", 0)
    rerun_when_cancelled(grid, other, "1")
    end = Write.ending("a", 0, FINISHED, attempt=1)
    end.publisher, end.next_is_due = "w", True
    assert other.write(grid.ref, end).claimed == rows("0")


def test_a_row_that_is_not_chosen_ends_while_its_job_is_cancelled(store: FirestoreStore, other: FirestoreStore) -> None:
    grid = published(store)
    grid.cancel("enough")
    elsewhere = grid.seen_by(other)
    assert elsewhere.job.cancelled is not None
    grid.tombstone()  # another revision of the job, which is still cancelled
    reply = other.write(grid.ref, Write.never_begun("a", 2, CANCELLED, "not chosen"))
    assert (reply.cell.status, reply.cell.message) == (CANCELLED, "enough")


@pytest.mark.parametrize("late", [True, False])
def test_an_attempt_that_began_in_a_cancelled_job_is_not_taken_back_after_a_rerun(
    store: FirestoreStore, other: FirestoreStore, spy: Spy, late: bool
) -> None:
    grid = published(store)
    elsewhere = grid.seen_by(other)
    elsewhere.cancel("enough")
    commits: list[bool] = []

    def rerun_before_it_is_taken_back(method: str, request: Any) -> None:
        if any(name.endswith("/states/a:0") for name in written(request)):
            commits.append(True)
            if len(commits) == 2:
                rerun(elsewhere, "0-1")
                assert not reset(elsewhere, "a", 0), "it runs"

    spy.fault = rerun_before_it_is_taken_back
    if late:
        assert grid.write("a", 0, 50, begin=grid.request("a", 0, owner="w")).cell.open
    else:
        assert grid.begin("a", 0, owner="w").verdict is Verdict.BEGUN
    assert (grid.cell("a", 0).open, len(commits)) == (True, 2)
    assert grid.end("a", 0).cell.status == FINISHED


def test_resets_end_during_a_reset(store: FirestoreStore, other: FirestoreStore, spy: Spy) -> None:
    grid = published(store, 1)
    settle(grid)
    rerun(grid, "0")
    decided: list[tuple[str, ...]] = []
    with just_before_commits_of(spy, "/states/a:0", lambda: decided.append(end_reset(grid.seen_by(other)))):
        assert not reset(grid, "a", 0)
    assert decided == [("settled",)]
    assert grid.cell("a", 0).status == FAILED


def test_resets_do_not_change_the_job(store: FirestoreStore, spy: Spy) -> None:
    grid = published(store, 6)
    settle(grid, failing=6)
    rerun(grid, "0-5")
    before = Documents(store).get("jobs/job")
    spy.clear()
    for row in range(6):
        assert reset_in(grid, row)
    assert Documents(store).get("jobs/job") == before
    checks = [each for each in spy.requests if any(name.endswith("/jobs/job") for name in written(each))]
    assert len(checks) == 6
    end_reset(grid)
    assert not reset_in(grid, 0)


def test_a_row_that_is_reset_during_a_claim_makes_room_once(
    store: FirestoreStore, other: FirestoreStore, spy: Spy
) -> None:
    grid = published(store, 4, max_in_flight=2)
    send_back(grid, "a", 0)
    assert claim(grid, "submitter").rows == rows("0")
    for row, delivery in ((0, AGAIN), (1, Delivery())):
        grid.begin("a", row, delivery=delivery)
        grid.end("a", row, FAILED)
    assert claim(grid).rows == rows("2-3"), "both are in flight"
    rerun(grid, "0")
    elsewhere, left = grid.seen_by(other), [True]

    def reset_between_the_reads(method: str, request: Any) -> None:
        if method == "RunQuery" and left:
            assert reset(elsewhere, "a", left.pop() - 1)

    spy.fault = reset_between_the_reads
    assert claim(grid, "q").rows == IndexSet()
    assert not left
    grid.run("a", 2)
    assert claim(grid, "q").rows == rows("0")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_reset_whose_answer_was_lost_happens_once(store: FirestoreStore, spy: Spy, when: str) -> None:
    grid = published(store, tags=("a", "b"))
    grid.run("a", 0)
    grid.run("b", 0, FAILED)
    rerun(grid, "0")
    before = [grid.cell(tag, 0).version for tag in ("a", "b")]
    left = iter([(when, grpc.StatusCode.UNAVAILABLE)])
    spy.fault = lambda method, request: next(left, None) if method == "Commit" else None
    assert reset(grid, "a", 0)
    assert spy.lost == 1
    assert [grid.cell(tag, 0).version for tag in ("a", "b")] == [version + 1 for version in before]
    assert claim(grid).rows == rows("0")


def test_two_processes_reset_a_row_once(store: FirestoreStore, other: FirestoreStore, spy: Spy) -> None:
    grid = published(store)
    settle(grid, failing=2)
    rerun(grid, "0-1")
    elsewhere = grid.seen_by(other)
    with just_before_commits_of(spy, "/states/a:0", lambda: reset(elsewhere, "a", 0)):
        assert not reset(grid, "a", 0)
    assert not reset_in(elsewhere, 0)
    assert reset_in(elsewhere, 1)
    assert state(grid).returned == Returned(waiting=rows("0-1"))


def test_a_repeated_failure_of_an_earlier_generation_decides_nothing(store: FirestoreStore) -> None:
    grid = published(store, 2)
    grid.begin("a", 0)
    grid.end("a", 0, FAILED, event_id="end")
    rerun(grid, "1")
    assert reset(grid, "a", 1)
    assert end_reset(grid) == ()
    assert grid.write("a", 0, FAILED, event_id="end").decided == ()
    assert grid.decided == set()


def test_documents_of_an_earlier_release_have_the_first_generation(store: FirestoreStore) -> None:
    grid, documents = published(store, 3, ("a", "b")), Documents(store)
    grid.run("a", 0, FAILED)
    grid.run("a", 1, FAILED)
    run = f"jobs/job/runs/{grid.ref.incarnation}"
    for row in (0, 1):
        for tag in ("a", "b"):
            fields = documents.get(f"jobs/job/states/{tag}:{row}")
            assert (fields.pop("generation"), fields.pop("failures")) == (1, int(tag == "a"))
            documents.put(f"jobs/job/states/{tag}:{row}", **fields)
        counts = documents.get(f"{run}/tallies/b:{row}")
        documents.put(f"{run}/tallies/b:{row}", **{**counts, "alarms": 1})  # cells that did not run counted, too
    assert (grid.cell("a", 0).generation, grid.cell("a", 0).failures) == (1, 0)
    rerun(grid, "0-1")
    assert grid.job.generation == Generation(2, 4, rows("0-1"))
    assert reset(grid, "a", 0)
    assert reset(grid, "a", 1)
    assert end_reset(grid) == ()
    grid.begin("a", 0, delivery=AGAIN)
    assert grid.end("a", 0).decided == ()
    grid.begin("a", 1, delivery=AGAIN)
    assert grid.end("a", 1, FAILED).decided == ("failure",)


def test_a_job_record_of_an_earlier_release_has_the_first_generation(store: FirestoreStore) -> None:
    grid, documents = published(store), Documents(store)
    assert "generation" not in documents.get("jobs/job")["control"]
    assert grid.job.generation == Generation()
    settle(grid)
    rerun(grid, "0")
    assert '"generation":[2,1,"0",0]' in documents.get("jobs/job")["control"]


def test_a_cancelled_job_is_checked_without_being_changed(store: FirestoreStore, spy: Spy) -> None:
    grid = published(store)
    for row in (0, 1):
        grid.begin("a", row)
    grid.cancel()
    spy.clear()
    grid.write("a", 0, FINISHED, attempt=1, ends_attempt=True)
    assert spy.calls == {"Commit": 1, "BatchGetDocuments": 1, "RunAggregationQuery": 1}, "the latter for the latches"
    (commit,) = (each for each in spy.requests if written(each))
    (check,) = (each for each in commit.writes if each.update.name.endswith("/jobs/job"))
    assert (list(check.update_mask.field_paths), list(check.update_transforms)) == ([], [])


def test_an_idle_write_keeps_its_status_although_the_cached_job_is_cancelled(
    store: FirestoreStore, other: FirestoreStore
) -> None:
    grid = published(store)
    grid.seen_by(other).begin("a", 2)
    other.write(grid.ref, Write.returned("a", 2, "retry", attempt=1))
    rerun_when_cancelled(grid, other, "0")
    reply = other.write(grid.ref, Write("a", 2, FAILED, message="no route", when=When.IDLE))
    assert (reply.cell.status, reply.cell.message) == (FAILED, "no route")


def test_a_new_generation_ends_what_a_process_has_begun_to_decide(
    store: FirestoreStore, other: FirestoreStore, spy: Spy
) -> None:
    grid = published(store, 2)
    grid.run("a", 0, FAILED)
    grid.begin("a", 1)
    elsewhere = grid.seen_by(other)
    with just_before_commits_of(spy, "/jobs/job", lambda: rerun(elsewhere, "0")):
        assert grid.end("a", 1).decided == ()
    assert (grid.decided, grid.job.generation.number) == (set(), 2)
    assert set(end_reset(grid)) == {"settled"}
    assert replace(grid.job.generation, rows_to_reset=IndexSet()) == Generation(2, 1)
