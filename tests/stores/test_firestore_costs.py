"""The cost of operations of the Firestore store, counted in calls and documents."""

from __future__ import annotations

import math
import random
import time
from collections import Counter, deque
from itertools import combinations
from typing import Any

import grpc
import pytest
from firestore_kit import Documents, Spy

from celery_statemanager import AttemptSuperseded
from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import Scope
from celery_statemanager.records import Delivery, JobKey, Reset, Verdict
from celery_statemanager.stores.firestore import FirestoreAddress, FirestoreStore
from celery_statemanager.stores.firestore.timings import Timings
from celery_statemanager.testing.contract_outbox import claim, create, draft, state
from celery_statemanager.testing.contract_rerun import end_reset, rerun
from celery_statemanager.testing.contract_returned import pause
from celery_statemanager.testing.kit import FAILED, FINISHED, PATIENCE, Grid, purge

SUM = "RunAggregationQuery"


@pytest.fixture
def timings() -> Timings:
    """Return timings that let a process use its cached job during a whole test."""
    return Timings(job_memory=3_600.0)


@pytest.fixture
def store(spied: FirestoreStore) -> FirestoreStore:
    return spied


def cost(spy: Spy) -> tuple[dict[str, int], int, int]:
    """Return the calls since the last time by method, and the numbers of documents read and written."""
    calls, reads, writes = dict(Counter(spy.calls)), spy.reads, spy.writes
    spy.clear()
    return calls, reads, writes


def test_nothing_is_sent_before_the_first_use(spy: Spy) -> None:
    spy.store(FirestoreAddress("nowhere"))
    assert spy.total == 0


def test_a_write_is_one_commit_and_reads_nothing(store: FirestoreStore, spy: Spy) -> None:
    grid = Grid.create(store, 100_000, ("a",))
    spy.clear()
    grid.write("a", 7, 5, message="first", payload='{"n":1}')
    assert cost(spy) == ({"Commit": 1}, 0, 2)
    for status in range(6, 26):
        grid.write("a", 7, status, message="next", payload='{"n":2}')
        assert cost(spy) == ({"Commit": 1}, 0, 1)


def test_writes_begins_and_ends_do_not_write_the_job_document(store: FirestoreStore, spy: Spy) -> None:
    grid = Grid.create(store, 10, ("a", "b"))
    spy.clear()
    for row in range(9):
        grid.begin("a", row, owner="w")
        grid.write("a", row, 50, attempt=1)
        grid.end("a", row, FINISHED)
    names = [write.update.name for request in spy.requests for write in getattr(request, "writes", ())]
    assert names
    assert not [name for name in names if name.endswith("/jobs/job")]


@pytest.mark.parametrize("rows", [500, 100_000])
def test_rows_share_no_document_up_to_500_rows_and_one_of_500_beyond(
    store: FirestoreStore, spy: Spy, rows: int
) -> None:
    grid = Grid.create(store, rows, ("a",))
    written: dict[int, set[str]] = {}
    for row in {0, 1, 7, 250, 499, rows // 2, rows - 1}:
        spy.clear()
        grid.begin("a", row, owner="w")
        grid.write("a", row, 50, attempt=1)
        grid.end("a", row, FINISHED)
        written[row] = {each.update.name for request in spy.requests for each in getattr(request, "writes", ())}
    for one, other in combinations(written, 2):
        assert len(written[one] & written[other]) == (one % 500 == other % 500), (one, other)


def test_a_task_costs_the_same_in_a_job_of_any_size(store: FirestoreStore, spy: Spy) -> None:
    for rows in (3, 500_000):
        grid = Grid.create(store, rows, ("a", "b"), job_id=f"job {rows}")
        spy.clear()
        grid.begin("a", 1, owner="w")
        assert cost(spy) == ({"BatchGetDocuments": 1, "Commit": 1}, 1, 2)
        grid.write("a", 1, 50, attempt=1)
        assert cost(spy) == ({"Commit": 1}, 0, 1)
        grid.write("a", 1, FINISHED, attempt=1, ends_attempt=True)
        assert cost(spy) == ({"Commit": 1, "BatchGetDocuments": 1, SUM: 1}, 2, 2)
        grid.begin("a", 2, owner="w")
        spy.clear()
        # This write also blocks the stage b and decides the latch of failure.
        grid.write("a", 2, FAILED, attempt=1, ends_attempt=True, block_later_stages=True)
        assert cost(spy) == ({"Commit": 2, "BatchGetDocuments": 1, SUM: 1}, 2, 5)


def test_completion_is_decided_by_one_sum_and_one_compare_and_set(store: FirestoreStore, spy: Spy) -> None:
    grid = Grid.create(store, 2, ("a",))
    grid.run("a", 0)
    grid.begin("a", 1)
    spy.clear()
    reply = grid.write("a", 1, FINISHED, attempt=1, ends_attempt=True)
    assert set(reply.decided) == {"success", "settled"}
    assert cost(spy) == ({"Commit": 2, "BatchGetDocuments": 1, SUM: 1}, 2, 3)


def test_aggregates_read_a_constant_number_of_documents(store: FirestoreStore, spy: Spy) -> None:
    grid = Grid.create(store, 500_000, ("a", "b"))
    grid.write("a", 499_999, -3)
    spy.clear()
    assert grid.lowest("a").task_index == 499_999
    assert cost(spy) == ({"BatchGetDocuments": 1, "RunQuery": 1}, 2, 0)
    grid.manager().summary(indexes=False)
    assert cost(spy) == ({"BatchGetDocuments": 2, "RunQuery": 2, SUM: 6}, 10, 0)
    grid.write("a", 499_999, 5)
    grid.manager().summary("a", indexes=False)  # no cell has failed, so none was not run
    assert spy.calls[SUM] <= 3 + 20
    sums = [request for request in spy.requests if hasattr(request, "structured_aggregation_query")]
    paths = {each.sum.field.field_path for one in sums for each in one.structured_aggregation_query.aggregations}
    assert not {"not_run", "failed_rows"} & paths
    spy.clear()
    grid.state("a", 4)
    assert cost(spy) == ({"BatchGetDocuments": 1}, 2, 0)


def test_the_lowest_missing_cell_is_found_with_at_most_2_plus_log2_n_counts(store: FirestoreStore, spy: Spy) -> None:
    grid = Grid.create(store, 64, ("a",))
    for row in [*range(41), 50, 63]:
        grid.write("a", row, 5)
    spy.clear()
    assert grid.lowest("a").task_index == 41
    assert spy.calls[SUM] <= 2 + 6
    spy.clear()
    grid.write("a", 41, 5)
    assert grid.lowest("a").task_index == 42
    assert spy.calls[SUM] <= 2 + 6
    large = Grid.create(store, 500_000, ("a",), job_id="large")
    for row in range(5):
        large.write("a", row, 5)
    spy.clear()
    assert large.lowest("a").task_index == 5
    assert spy.calls[SUM] <= 2 + 19


@pytest.mark.firestore
@pytest.mark.timeout(600)
def test_reading_a_full_grid_costs_the_same_at_any_size(store: FirestoreStore, spy: Spy) -> None:
    for rows in (100, 1_000, 10_000):
        grid = Grid.create(store, rows, ("a",), job_id=f"job {rows}")
        missing = rows * 2 // 3
        for row in range(rows):
            if row != missing:
                grid.write("a", row, 50)
        manager = grid.manager()
        spy.clear()
        assert manager.get_state().task_index == missing
        assert spy.calls[SUM] <= 2 + math.log2(rows)
        grid.write("a", missing, 50)
        spy.clear()
        assert manager.get_state().status == 50
        assert cost(spy) == ({"BatchGetDocuments": 1, "RunQuery": 1, SUM: 1}, 3, 0)
        assert manager.summary(indexes=False).running == rows
        assert cost(spy) == ({"BatchGetDocuments": 1, "RunQuery": 1, SUM: 4}, 6, 0)


@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_a_new_process_finds_a_missing_cell_wherever_it_is(store: FirestoreStore, spy: Spy, rows: int) -> None:
    grid = Grid.create(store, rows, ("a",))
    dice = random.Random(rows)
    left = list(range(rows))
    dice.shuffle(left)
    while left:
        with spy.store(store._connection.address) as newcomer:
            spy.clear()
            assert grid.seen_by(newcomer).lowest("a").task_index == min(left)
            assert spy.calls[SUM] <= 2 + math.log2(rows)
        grid.write("a", left.pop(), 5)
    assert grid.lowest("a").status == 5


def test_a_rejected_or_repeated_write_reads_job_and_cell(store: FirestoreStore, spy: Spy) -> None:
    grid = Grid.create(store, 2, ("a",))
    grid.run("a", 0)
    grid.write("a", 1, 5, event_id="same")
    for retries in (1, 2):
        grid.begin("a", 1, delivery=Delivery(0, 0, retries))
    grid.write("a", 1, 6, attempt=2, event_id="same")
    spy.clear()
    assert grid.begin("a", 0).verdict is not Verdict.BEGUN  # also checks whether the latches were decided
    assert cost(spy) == ({"BatchGetDocuments": 2, SUM: 1}, 4, 0)
    grid.write("a", 1, 6, attempt=2, event_id="same")
    assert cost(spy) == ({"BatchGetDocuments": 1}, 2, 0)
    with pytest.raises(AttemptSuperseded):
        grid.write("a", 1, 7, attempt=1)
    assert cost(spy) == ({"BatchGetDocuments": 1}, 2, 0)


@pytest.mark.parametrize(("when", "commits"), [("before", 2), ("after", 1)])
def test_a_lost_response_costs_one_read_and_the_missing_commit(
    store: FirestoreStore, spy: Spy, when: str, commits: int
) -> None:
    grid = Grid.create(store, 2, ("a",))
    grid.write("a", 1, 5)
    spy.clear()
    lost = iter([(when, grpc.StatusCode.UNAVAILABLE)])
    spy.fault = lambda method, request: next(lost, None)
    assert grid.write("a", 1, 6).cell.version == 2
    assert cost(spy) == ({"Commit": commits, "BatchGetDocuments": 1}, 2, commits)


def test_a_lost_race_costs_one_read_and_a_second_commit(store: FirestoreStore, spy: Spy) -> None:
    grid = Grid.create(store, 2, ("a",))
    grid.write("a", 1, 5)
    with FirestoreStore(store._connection.address) as other:
        grid.seen_by(other).write("a", 1, 6)
    spy.clear()
    assert grid.write("a", 1, 7).cell.version == 3
    assert cost(spy) == ({"Commit": 2, "BatchGetDocuments": 1}, 2, 2)


def test_the_first_writes_of_a_process_read_the_job_once(store: FirestoreStore, spy: Spy) -> None:
    grid = Grid.create(store, 2, ("a",))
    with spy.store(store._connection.address) as newcomer:
        spy.clear()
        elsewhere = grid.seen_by(newcomer)
        elsewhere.write("a", 0, 5)
        elsewhere.write("a", 1, 5)
        assert cost(spy) == ({"Commit": 2, "BatchGetDocuments": 1}, 2, 4)


@pytest.mark.parametrize("timings", [Timings(job_memory=3_600.0, check_after=-1.0)])
def test_a_check_for_a_missing_decision_has_a_fixed_cost(store: FirestoreStore, spy: Spy) -> None:
    Grid.create(store, 2, ("a",))
    spy.clear()
    assert store.list_jobs(due=True).jobs == []
    calls, reads, writes = cost(spy)
    assert calls == {"RunQuery": 2, "BatchGetDocuments": 2, SUM: 1, "Commit": 1}
    assert (reads, writes) == (4 + 1, 1), "the empty result of a query counts as one read"


def test_a_page_of_the_newest_jobs_reads_only_its_jobs(store: FirestoreStore, spy: Spy) -> None:
    for number in range(12):
        Grid.create(store, 1, job_id=f"job {number:02}")
    cursor = None
    for first in (11, 8, 5):
        spy.clear()
        page = store.newest_jobs(cursor, 3)
        assert [each.job.job_id for each in page] == [f"job {first - at:02}" for at in range(3)]
        assert cost(spy) == ({"RunQuery": 1}, 3, 0)
        cursor = page[-1].cursor


def test_a_subscription_reads_the_job_and_its_existing_states(store: FirestoreStore, spy: Spy) -> None:
    grid = Grid.create(store, 3, ("a",))
    for row in range(3):
        grid.write("a", row, 5)
    manager = grid.manager()
    spy.clear()
    with manager.subscribe() as events:
        for _ in range(3):
            assert events.get(PATIENCE).replay
        spy.calls.pop("Listen", None)
        assert cost(spy) == ({"BatchGetDocuments": 2, "RunQuery": 1}, 5, 0)


@pytest.mark.parametrize("timings", [Timings(job_memory=3_600.0, activity_every=-1.0)])
def test_storing_the_activity_of_a_job_is_one_write(store: FirestoreStore, spy: Spy) -> None:
    grid = Grid.create(store, 3, ("a",))
    grid.write("a", 0, 5)
    spy.clear()
    grid.write("a", 0, 6)
    assert cost(spy) == ({"Commit": 2}, 0, 2)


def test_deleting_a_job_is_one_read_and_one_commit(store: FirestoreStore, spy: Spy) -> None:
    grid = Grid.create(store)
    job = grid.job
    spy.clear()
    store.delete_job(job)
    assert cost(spy) == ({"BatchGetDocuments": 1, "Commit": 1}, 1, 2)


@pytest.mark.parametrize("others", [0, 25])
def test_deleting_a_job_with_its_cells_costs_the_same_beside_any_garbage(
    store: FirestoreStore, spy: Spy, others: int
) -> None:
    for number in range(others):
        store.delete_job(Grid.create(store, job_id=f"other {number}").job)
    grid = Grid.create(store)
    for row in range(3):
        grid.write("a", row, 5)
    manager = grid.manager()
    spy.clear()
    manager.delete_job()
    calls, reads, writes = cost(spy)
    assert calls == {"BatchGetDocuments": 2, "RunQuery": 2, "Commit": 4}
    assert (reads, writes) == (2 + 3 + 3, 2 + 3 + 3 + 1), "the job, its note, cells and tallies"


def test_a_job_with_messages_costs_three_more_writes_and_its_blocks(store: FirestoreStore, spy: Spy) -> None:
    job = draft(1_000)
    store.now()
    spy.clear()
    for first in range(0, 1_000, 100):
        store.add_block(job.ref, first, bytes(250_000), 60)
        assert cost(spy) == ({"Commit": 1}, 0, 2), "the block and its draft"
    store.create_job(job)
    assert cost(spy) == ({"Commit": 1}, 0, 3), "the job, its draft and its claims"
    stored = store.get_job(job.key)
    spy.clear()
    store.delete_job(stored)
    assert cost(spy) == ({"BatchGetDocuments": 1, "Commit": 1}, 1, 3), "the job, its claims and its note"
    store.purge()
    assert cost(spy)[0]["RunQuery"] <= 2 + 4


def test_a_block_is_found_by_one_query_beside_any_number(store: FirestoreStore, spy: Spy) -> None:
    job = draft(1_000)
    for first in range(0, 1_000, 20):
        store.add_block(job.ref, first, bytes(3_000_000 if first == 980 else 100), 60)
    for row in (0, 19, 500, 979):
        spy.clear()
        assert store.get_block(job.ref, row) is not None
        assert cost(spy) == ({"RunQuery": 1}, 1, 0)
    assert store.get_block(job.ref, 999) is not None
    assert cost(spy) == ({"RunQuery": 1, "BatchGetDocuments": 1}, 4, 0), "the parts of a large block are read at once"


@pytest.mark.parametrize("others", [0, 20])
def test_a_search_for_expired_drafts_costs_the_same_beside_any_jobs(
    store: FirestoreStore, spy: Spy, others: int
) -> None:
    for number in range(others):
        create(store, job_id=f"job {number}")
    store.add_block(draft(job_id="kept").ref, 0, b"messages", 60)
    spy.clear()
    assert store.drop_expired_drafts() == 0
    assert cost(spy) == ({"RunQuery": 1}, 1, 0)
    store.add_block(draft(job_id="expired").ref, 0, b"messages", 0)
    spy.clear()
    assert store.drop_expired_drafts() == 1
    calls, reads, writes = cost(spy)
    assert calls == {"RunQuery": 1 + 2, "BatchGetDocuments": 1, "Commit": 3}
    assert (reads, writes) == (1 + 2 + 2, 2 + 1 + 1), "the draft with its note, the block, and the note again"


def test_a_claim_costs_three_round_trips_at_any_size(store: FirestoreStore, spy: Spy) -> None:
    for size, window in ((10, 5), (500_000, 400)):
        grid = create(store, size, max_in_flight=window, job_id=f"job {size}")
        spy.clear()
        assert len(claim(grid).rows) == min(window, 100)
        assert cost(spy) == ({"BatchGetDocuments": 1, SUM: 1, "Commit": 1}, 3, 1)
    claim(grid, limit=400)
    spy.clear()
    assert not claim(grid, "q").rows
    assert cost(spy) == ({"BatchGetDocuments": 1, SUM: 1}, 3, 0), "nothing is written if the window is full"
    grid = create(store, 10)
    spy.clear()
    assert len(claim(grid).rows) == 10
    assert cost(spy) == ({"BatchGetDocuments": 1, "Commit": 1}, 2, 1), "without a window nothing is summed"
    assert state(grid).claimed == 10
    assert cost(spy) == ({"BatchGetDocuments": 1}, 2, 0)


@pytest.mark.parametrize(("tags", "claims"), [(("a",), 1), (("a", "b"), 2)])
def test_the_end_of_a_row_claims_with_one_more_commit(
    store: FirestoreStore, spy: Spy, tags: tuple[str, ...], claims: int
) -> None:
    """The claims are read in any case, in a chain also the row that the publisher has claimed for its next stage."""
    grid = create(store, 500_000, tags, max_in_flight=2)
    claim(grid)
    for tag in tags[:-1]:
        grid.begin(tag, 0, owner="w")
        spy.clear()
        grid.write(tag, 0, FINISHED, attempt=1, ends_attempt=True, publisher="w")
        assert cost(spy) == ({"Commit": 1, "BatchGetDocuments": 1, SUM: 1}, 2 + claims, 2), "there is no room"
    grid.begin(tags[-1], 0, owner="w")
    spy.clear()
    assert grid.write(tags[-1], 0, FINISHED, attempt=1, ends_attempt=True, publisher="w").claimed
    assert cost(spy) == ({"Commit": 2, "BatchGetDocuments": 1, SUM: 1}, 2 + claims, 3)
    grid.begin("a", 1, owner="w")
    spy.clear()
    grid.write("a", 1, FINISHED, attempt=1, ends_attempt=True)
    assert cost(spy) == ({"Commit": 1, "BatchGetDocuments": 1, SUM: 1}, 2, 2), "without a publisher"


@pytest.mark.parametrize("window", [None, 50])
def test_a_finished_stage_claims_the_next_one_with_one_more_write(
    store: FirestoreStore, spy: Spy, window: int | None
) -> None:
    grid = create(store, 100, ("a", "b"), max_in_flight=window)
    claim(grid)
    for row, publisher in ((0, "w"), (1, "w"), (2, "v")):
        grid.begin("a", row, owner="w")
        spy.clear()
        assert grid.write(
            "a", row, FINISHED, attempt=1, ends_attempt=True, publisher=publisher, next_is_due=True
        ).claimed == IndexSet([row])
        assert spy.writes_of(f"/claims/{publisher}") == 1
        assert cost(spy) == ({"Commit": 1, "BatchGetDocuments": 1, SUM: 1}, 2, 3)
    assert len(state(grid).claims) == 3
    assert cost(spy) == ({"BatchGetDocuments": 1, "RunQuery": 1}, 2 + 2, 0)
    assert claim(grid, "sweeper", limit=0, dead=("w", "v")).rows == IndexSet([1, 2])
    assert cost(spy) == ({"BatchGetDocuments": 1, "Commit": 1, **({SUM: 1} if window else {})}, 5 + bool(window), 3)


def test_a_value_is_one_write_and_one_read(store: FirestoreStore, spy: Spy) -> None:
    grid = create(store, 3, ("a", "b"))
    claim(grid)
    for tag, value in (("a", "1"), ("b", "")):
        grid.begin(tag, 0, owner="w")
        spy.clear()
        grid.write(tag, 0, FINISHED, attempt=1, ends_attempt=True, value=value)
        assert cost(spy) == ({"Commit": 1, "BatchGetDocuments": 1, SUM: 1}, 2, 3)
        assert store.get_value(grid.ref, 0) == (value or None)
        assert cost(spy) == ({"BatchGetDocuments": 1}, 1, 0)


def test_rows_that_a_paused_job_returns_share_no_document(store: FirestoreStore, spy: Spy) -> None:
    grid = create(store, 40, max_in_flight=40)
    claim(grid)
    pause(grid)
    spy.clear()
    for row in range(20):
        assert grid.begin("a", row, owner="w", may_wait=True).verdict is Verdict.PAUSED
        writes = 2 + 1 + (row == 0)
        assert cost(spy) == ({"BatchGetDocuments": 1, "Commit": 1}, 2, writes), "the first one marks the claims"
    with spy.store(store._connection.address) as newcomer:
        grid.seen_by(newcomer).begin("a", 20, owner="w", may_wait=True)
        assert spy.writes_of("/outbox/state") == 1
        spy.clear()
        grid.seen_by(newcomer).begin("a", 21, owner="w", may_wait=True)
        assert spy.writes_of("/outbox/state") == 0
    spy.clear()
    assert claim(grid, "q").rows == IndexSet()
    assert cost(spy) == ({"BatchGetDocuments": 1, SUM: 1, "RunQuery": 1}, 2 + 1 + 22, 0)
    pause(grid, paused=False)
    spy.clear()
    assert len(claim(grid, limit=5).rows) == 5
    assert cost(spy) == ({"BatchGetDocuments": 1, SUM: 1, "RunQuery": 1, "Commit": 1}, 2 + 1 + 22, 1 + 5)


@pytest.mark.parametrize("rows", [4, 500_000])
@pytest.mark.parametrize("tags", [("a",), ("a", "b", "c")])
def test_a_reset_costs_two_round_trips_in_a_job_of_any_size(
    store: FirestoreStore, spy: Spy, rows: int, tags: tuple[str, ...]
) -> None:
    """The small documents are the row of the outbox and, for the first row of a process, its mark in the claims."""
    grid, stages = create(store, rows, tags), len(tags)
    claim(grid)
    for row in (0, 1):
        grid.run("a", row, FAILED)
    rerun(grid, "0-2")
    for row, small in ((0, 2), (1, 1), (2, 1)):
        request = Reset(tag="a", task_index=row, generation=2)
        spy.clear()
        assert store.reset_row(grid.ref, request)
        assert cost(spy) == ({"BatchGetDocuments": 1, "Commit": 1}, stages, 2 * stages + 1 + small), "and the job"
    assert not store.reset_row(grid.ref, request)
    assert cost(spy) == ({"BatchGetDocuments": 2}, 2 * stages + 1, 0), "a refusal reads the job"
    grid.begin("a", 3)
    spy.clear()
    grid.write("a", 3, FINISHED, attempt=1, ends_attempt=True)
    assert cost(spy) == ({"BatchGetDocuments": 1, "Commit": 1}, 1, 2), "nothing is summed while rows are reset"
    end_reset(grid)
    assert cost(spy) == ({"BatchGetDocuments": 2, "Commit": 1, SUM: 1}, 3, 2)


@pytest.mark.parametrize("timings", [Timings(job_memory=3_600.0, claim_burst=5.0)])
def test_claims_are_written_about_once_a_second_however_fast_rows_end(
    store: FirestoreStore, spy: Spy, record_property: Any
) -> None:
    grid = create(store, 400, max_in_flight=200)
    waiting = deque(claim(grid, limit=200).rows)
    spy.clear()
    begun = time.monotonic()
    for _ in range(300):
        row = waiting.popleft()
        grid.begin("a", row, owner="w")
        waiting.extend(grid.write("a", row, FINISHED, attempt=1, ends_attempt=True, publisher="w").claimed)
    names = [each.update.name for request in spy.requests for each in getattr(request, "writes", ())]
    seconds = time.monotonic() - begun
    claims = sum(name.endswith("/outbox/state") for name in names)
    record_property("claims", f"{claims} in {seconds:.1f} s")
    assert claims <= seconds + 5 + 300 / 100 + 1
    assert len(waiting) == 400 - 300, "all rows are claimed"
    assert not [name for name in names if name.endswith("/jobs/job")]


def go_states(documents: Documents, count: int) -> None:
    """Write a job of the Go module with ``count`` states."""
    documents.put("jobs/go", numTasks=count, deleted=False)
    for start in range(0, count, 400):
        rows = range(start, min(start + 400, count))
        documents.put_all({f"jobs/go/states/extract:{row}": {"tag": "extract", "taskID": row} for row in rows})


@pytest.mark.parametrize("count", [500, 2_000])
def test_purging_a_job_of_the_go_module_reads_each_state_at_most_twice(
    store: FirestoreStore, spy: Spy, count: int
) -> None:
    documents = Documents(store)
    go_states(documents, count)
    assert store.delete_job(store.get_job(JobKey("go")))
    spy.clear()
    assert purge(store, 500) == count
    calls, reads, writes = cost(spy)
    assert reads <= 2 * count + 10 * calls["RunQuery"]
    assert calls["RunQuery"] <= 3 * count / 400 + 10
    assert writes <= count + count / 500 + 2
    assert documents.ids("jobs/go/states") == []


def test_purging_a_job_of_the_go_module_passes_over_its_successor_once(
    address: FirestoreAddress, store: FirestoreStore, spy: Spy
) -> None:
    documents, rows = Documents(store), 450
    go_states(documents, 600)
    assert store.delete_job(store.get_job(JobKey("go")))
    successor = Grid.create(store, rows, ("before",), job_id="go")
    for row in range(rows):
        successor.write("before", row, 5)
    spy.clear()
    for left in (500, 400, 300, 200, 100, 0):
        with spy.store(address) as fresh:  # a new process each time: the note stores the position
            assert fresh.purge(100) == 100
        assert len(documents.ids("jobs/go/states")) == rows + left
    _, reads, _ = cost(spy)
    assert reads <= rows + 6 * (400 + 20)
    assert store.purge() == 0
    assert successor.manager().summary().running == rows


def test_purged_garbage_is_read_again_only_after_a_grace_period(
    address: FirestoreAddress, store: FirestoreStore, spy: Spy
) -> None:
    documents = Documents(store)
    for number in range(5):
        grid = Grid.create(store, job_id=f"job {number}")
        grid.write("a", 0, 5)
        store.delete_job(grid.job)
    assert purge(store) == 10, "a cell and a tally each"
    spy.clear()
    assert store.purge() == 0
    assert cost(spy) == ({"RunQuery": 2}, 2, 0)
    assert len(documents.ids("jobs_garbage")) == 5
    with FirestoreStore(address, timings=Timings(purge_grace=-60.0)) as later:
        assert purge(later) == 5
    assert documents.ids("jobs_garbage") == []


def test_a_worker_record_is_one_write(store: FirestoreStore, spy: Spy) -> None:
    store.put_worker("w", "body", 30)
    assert cost(spy) == ({"Commit": 1}, 0, 1)


def test_listing_states_reads_documents_in_pages(store: FirestoreStore, spy: Spy) -> None:
    grid = Grid.create(store, 400)
    for row in range(310):
        grid.write("a", row, 5)
    spy.clear()
    assert len(list(store.list_states(grid.ref, Scope()))) == 310
    assert cost(spy) == ({"BatchGetDocuments": 1, "RunQuery": 2}, 311, 0)
