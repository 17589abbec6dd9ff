"""What operations of the Firestore store cost, counted on the wire."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator

import pytest
from firestore_kit import Spy

from celery_statemanager.models import Scope
from celery_statemanager.stores.firestore import Address, FirestoreStore
from celery_statemanager.testing.kit import FAILED, FINISHED, Grid

SUM = "RunAggregationQuery"


@pytest.fixture
def spy() -> Spy:
    return Spy()


@pytest.fixture
def store(firestore_emulator: str, spy: Spy) -> Iterator[FirestoreStore]:
    with spy.store(Address(f"test-{uuid.uuid4().hex[:12]}")) as store:
        yield store


def cost(spy: Spy) -> tuple[dict[str, int], int]:
    """Give the calls since the last time by method, and how many documents they wrote."""
    calls, writes = dict(Counter(spy.calls)), spy.writes
    spy.clear()
    return calls, writes


def test_nothing_is_sent_before_the_first_use(spy: Spy) -> None:
    spy.store(Address("nowhere"))
    assert spy.total == 0


def test_a_write_is_one_commit_and_reads_nothing(store: FirestoreStore, spy: Spy) -> None:
    grid = Grid.create(store, 100_000, ("a",))
    spy.clear()
    grid.write("a", 7, 5, message="first", payload='{"n":1}')
    assert cost(spy) == ({"Commit": 1}, 2)
    for status in range(6, 26):
        grid.write("a", 7, status, message="next", payload='{"n":2}')
        assert cost(spy) == ({"Commit": 1}, 1)


def test_the_job_document_is_not_written_by_writes_begins_and_ends(store: FirestoreStore, spy: Spy) -> None:
    grid = Grid.create(store, 10, ("a", "b"))
    spy.clear()
    for row in range(9):
        grid.begin("a", row, owner="w")
        grid.write("a", row, 50, attempt=1)
        grid.end("a", row, FINISHED)
    names = [write.update.name for request in spy.requests for write in getattr(request, "writes", ())]
    assert names
    assert not [name for name in names if name.endswith("/jobs/job")]


def test_a_life_of_a_task_costs_the_same_at_any_size(store: FirestoreStore, spy: Spy) -> None:
    for rows in (3, 500_000):
        grid = Grid.create(store, rows, ("a", "b"), job_id=f"job {rows}")
        spy.clear()
        grid.begin("a", 1, owner="w")
        assert cost(spy) == ({"BatchGetDocuments": 1, "Commit": 1}, 2)
        grid.write("a", 1, 50, attempt=1)
        assert cost(spy) == ({"Commit": 1}, 1)
        grid.write("a", 1, FINISHED, attempt=1, closes=True)
        assert cost(spy) == ({"Commit": 1, "BatchGetDocuments": 1, SUM: 1}, 2)
        grid.begin("a", 2, owner="w")
        spy.clear()
        grid.write("a", 2, FAILED, attempt=1, closes=True, cascades=True)  # also blocks b, and decides failure
        assert cost(spy) == ({"Commit": 2, "BatchGetDocuments": 1, SUM: 1}, 5)


def test_completion_is_decided_by_one_sum_and_one_compare_and_set(store: FirestoreStore, spy: Spy) -> None:
    grid = Grid.create(store, 2, ("a",))
    grid.run("a", 0)
    grid.begin("a", 1)
    spy.clear()
    reply = grid.write("a", 1, FINISHED, attempt=1, closes=True)
    assert set(reply.decided) == {"success", "settled"}
    assert cost(spy) == ({"Commit": 2, "BatchGetDocuments": 1, SUM: 1}, 3)


def test_aggregates_read_a_constant_number_of_documents(store: FirestoreStore, spy: Spy) -> None:
    grid = Grid.create(store, 500_000, ("a", "b"))
    grid.write("a", 499_999, -3)
    spy.clear()
    assert grid.lowest("a").task_index == 499_999
    assert cost(spy) == ({"BatchGetDocuments": 1, "RunQuery": 1}, 0)
    grid.manager().summary(indexes=False)
    spy.calls.pop("BatchGetDocuments")
    assert cost(spy) == ({"RunQuery": 2, SUM: 4}, 0)
    grid.state("a", 4)
    assert cost(spy) == ({"BatchGetDocuments": 1}, 0)


def test_the_lowest_missing_cell_is_found_within_two_and_log2_n_counts(store: FirestoreStore, spy: Spy) -> None:
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


def test_deleting_is_one_read_and_one_commit(store: FirestoreStore, spy: Spy) -> None:
    grid = Grid.create(store)
    job = grid.job
    spy.clear()
    store.delete_job(job)
    assert cost(spy) == ({"BatchGetDocuments": 1, "Commit": 1}, 2)


def test_a_worker_record_is_one_write(store: FirestoreStore, spy: Spy) -> None:
    store.put_worker("w", "body", 30)
    assert cost(spy) == ({"Commit": 1}, 1)


def test_a_list_reads_its_documents_in_pages(store: FirestoreStore, spy: Spy) -> None:
    grid = Grid.create(store, 400)
    for row in range(310):
        grid.write("a", row, 5)
    spy.clear()
    assert len(list(store.list_states(grid.ref, Scope()))) == 310
    assert cost(spy) == ({"BatchGetDocuments": 1, "RunQuery": 2}, 0)
