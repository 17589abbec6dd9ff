"""Long lists of the Firestore store: pages with their own deadlines, and entries that the store cannot process."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from firestore_kit import Documents, Spy

from celery_statemanager import StoreUnavailable
from celery_statemanager.records import Latch
from celery_statemanager.stores.firestore import FirestoreAddress, FirestoreStore, database, workers
from celery_statemanager.stores.firestore.timings import Timings
from celery_statemanager.stores.firestore.values import Moment
from celery_statemanager.testing.kit import FINISHED, Grid, every_job

ATTEMPTS = 700
WORKERS = 120


@pytest.fixture
def store(firestore_emulator: str, spy: Spy) -> Iterator[FirestoreStore]:
    with spy.store(FirestoreAddress(f"test-{uuid.uuid4().hex[:12]}"), timings=Timings(job_memory=3_600.0)) as store:
        yield store


@pytest.fixture
def documents(store: FirestoreStore) -> Documents:
    return Documents(store)


def limits(spy: Spy) -> list[int]:
    """Return the limit of each query since the last call."""
    asked = [request.structured_query for request in spy.requests if hasattr(request, "structured_query")]
    spy.clear()
    return [query.limit.value for query in asked]


def open_attempts(store: FirestoreStore, documents: Documents, count: int) -> None:
    """Copy one open attempt to ``count`` rows."""
    grid = Grid.create(store, count, ("a",))
    grid.begin("a", 0, owner="w")
    cell = documents.get("jobs/job/states/a:0")
    for start in range(1, count, 400):
        rows = range(start, min(start + 400, count))
        documents.put_all({f"jobs/job/states/a:{row}": {**cell, "taskID": row} for row in rows})


def test_open_attempts_are_read_in_pages(store: FirestoreStore, spy: Spy, documents: Documents) -> None:
    open_attempts(store, documents, ATTEMPTS)
    spy.clear()
    assert sorted(each.task_index for each in store.list_open_attempts()) == list(range(ATTEMPTS))
    pages = spy.calls["RunQuery"]
    assert pages == ATTEMPTS // database.PAGE + 1
    assert spy.reads <= ATTEMPTS + 2 * ATTEMPTS // 100 + pages
    assert limits(spy) == [database.PAGE] * pages


def test_workers_are_read_in_pages(store: FirestoreStore, spy: Spy) -> None:
    for number in range(WORKERS):
        store.put_worker(f"w{number}", "{}", 30)
    spy.clear()
    assert len(list(store.list_workers())) == WORKERS
    pages = WORKERS // workers.PAGE + 1
    assert spy.reads == WORKERS
    assert limits(spy) == [workers.PAGE] * pages


@pytest.mark.parametrize("listed", ["attempts", "workers"])
def test_each_page_has_the_whole_timeout(store: FirestoreStore, spy: Spy, documents: Documents, listed: str) -> None:
    open_attempts(store, documents, database.PAGE + 1)
    for number in range(workers.PAGE + 1):
        store.put_worker(f"w{number}", "{}", 30)
    store._connection.timeout = timeout = 1.0
    found = iter(store.list_open_attempts() if listed == "attempts" else store.list_workers())
    next(found)
    threading.Event().wait(timeout)  # the caller processes the first page for longer than the timeout
    lost = iter([("before", grpc.StatusCode.UNAVAILABLE)])
    spy.fault = lambda method, request: next(lost, None)
    assert len(list(found)) == (database.PAGE if listed == "attempts" else workers.PAGE)


@pytest.fixture
def overdue(store: FirestoreStore, documents: Documents) -> list[str]:
    """Create 25 overdue jobs and return their names, the most overdue first.

    The only cell of each job has ended, and its latches are undecided.
    """
    names = [f"job {number:02}" for number in range(25)]
    began = store.now() - 3_600_000_000
    for number, name in enumerate(names):
        grid = Grid.create(store, 1, ("a",), job_id=name, success="call")
        undecided = documents.get(f"jobs/{name}")
        grid.write("a", 0, FINISHED)
        documents.put(f"jobs/{name}", **undecided | {"checkAfter": Moment(began + number)})
    return names


def test_all_overdue_jobs_are_decided_by_one_listing_page_by_page(
    store: FirestoreStore, spy: Spy, overdue: list[str]
) -> None:
    spy.clear()
    first = store.list_jobs(due=True)
    assert spy.calls["RunAggregationQuery"] == len(first.jobs) == 10
    assert sorted(job.job_id for job in every_job(store, due=True)) == overdue
    assert {*limits(spy)} == {10, 101}


def test_overdue_jobs_that_become_due_during_a_listing_are_listed_once(
    store: FirestoreStore, overdue: list[str]
) -> None:
    for limit in (1, 4):
        listed = [job.job_id for job in every_job(store, limit, due=True)]
        assert sorted(listed) == overdue, limit


def test_foreign_documents_do_not_hide_overdue_jobs(
    store: FirestoreStore, documents: Documents, overdue: list[str]
) -> None:
    """Documents of other programs or of later releases always stay the most overdue ones."""
    for number in range(12):
        documents.put(f"jobs/other {number}", checkAfter=Moment(number + 1))
    assert sorted(job.job_id for job in every_job(store, due=True)) == overdue


def test_jobs_that_cannot_be_changed_do_not_hide_others(
    store: FirestoreStore, spy: Spy, documents: Documents, overdue: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    refused = {documents.name(f"jobs/{name}") for name in overdue[:12]}

    def refuse(method: str, request: Any) -> tuple[str, grpc.StatusCode, str] | None:
        names = {each.update.name for each in getattr(request, "writes", ())}
        return ("before", grpc.StatusCode.INVALID_ARGUMENT, "too large") if names & refused else None

    spy.fault = refuse
    with caplog.at_level(logging.WARNING):
        assert sorted(job.job_id for job in every_job(store, due=True)) == overdue[12:]
    assert caplog.text.count("too large") == 12
    assert f"job {overdue[0]!r}" in caplog.text


def test_a_contended_job_does_not_hide_others(
    store: FirestoreStore, spy: Spy, documents: Documents, overdue: list[str]
) -> None:
    contended = overdue[0]

    def change(method: str, request: Any) -> None:
        if any(each.update.name == documents.name(f"jobs/{contended}") for each in getattr(request, "writes", ())):
            documents.touch(f"jobs/{contended}", reopened=uuid.uuid4().hex)

    store._connection.timeout = 0.5
    spy.fault = change
    assert sorted(job.job_id for job in every_job(store, due=True)) == overdue[1:]


def test_an_unavailable_store_ends_the_listing(store: FirestoreStore, spy: Spy, overdue: list[str]) -> None:
    store._connection.timeout = 0.2
    spy.fault = lambda method, request: ("before", grpc.StatusCode.UNAVAILABLE) if method == "Commit" else None
    with pytest.raises(StoreUnavailable):
        list(every_job(store, due=True))


def test_jobs_that_become_due_during_a_listing_match_its_other_filters(
    store: FirestoreStore, overdue: list[str]
) -> None:
    later = store.now() + 3_600_000_000
    assert list(every_job(store, due=True, tombstoned=True)) == []
    found = list(every_job(store, due=True, idle_before=later))
    assert all(job.due and job.latches["success"] != Latch() for job in found)
    assert sorted(job.job_id for job in found) == overdue
