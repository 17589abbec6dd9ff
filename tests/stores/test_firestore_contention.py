"""Calls that lose every race for a Firestore document pause between tries and give up in time."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from firestore_kit import Documents, Spy

from celery_statemanager import StoreContended, StoreError
from celery_statemanager.records import JobKey, JobRef, new_incarnation
from celery_statemanager.stores.firestore import FirestoreAddress, FirestoreStore
from celery_statemanager.testing.kit import FINISHED, Grid

pytestmark = pytest.mark.timeout(30)

TIMEOUT = 0.5
MOST_TRIES = 12
"""Commits that fit into ``TIMEOUT`` with pauses of 5, 10, 20 ms and so on, halved at most by jitter."""


@pytest.fixture
def store(firestore_emulator: str, spy: Spy) -> FirestoreStore:
    return spy.store(FirestoreAddress(f"test-{uuid.uuid4().hex[:12]}"))


@pytest.fixture
def documents(store: FirestoreStore) -> Documents:
    return Documents(store)


def targets(request: Any) -> list[str]:
    """Return the names of the documents that a commit writes or deletes."""
    return [each.update.name or each.delete for each in getattr(request, "writes", ())]


def interfere(store: FirestoreStore, spy: Spy, documents: Documents, path: str) -> list[int]:
    """Change a document before each commit that writes it. Return a list that grows with each such commit."""
    tries: list[int] = []

    def change(method: str, request: Any) -> None:
        if method == "Commit" and documents.name(path) in targets(request):
            tries.append(len(tries))
            documents.touch(path, reopened=f"by another, {len(tries)}")

    store._connection.timeout = TIMEOUT
    spy.fault = change
    return tries


def update(grid: Grid) -> None:
    grid.store.update_job(replace(grid.job, tombstoned_at=1))


def delete(grid: Grid) -> None:
    grid.store.delete_job(grid.job)


def decide(grid: Grid) -> None:
    for row in range(2):
        grid.write("a", row, FINISHED)


@pytest.mark.parametrize("operation", [update, delete, decide], ids=lambda each: each.__name__)
def test_a_change_pauses_and_ends_when_others_change_the_job_each_time(
    store: FirestoreStore, spy: Spy, documents: Documents, operation: Callable[[Grid], None]
) -> None:
    grid = Grid.create(store, 2, ("a",))
    tries = interfere(store, spy, documents, "jobs/job")
    with pytest.raises(StoreContended, match=r"gave up after 0\.5 s"):
        operation(grid)
    assert 1 < len(tries) <= MOST_TRIES


def test_a_write_pauses_and_ends_when_others_write_the_cell_each_time(
    store: FirestoreStore, spy: Spy, documents: Documents
) -> None:
    grid = Grid.create(store, 2, ("a",))
    grid.write("a", 0, 5)
    tries = interfere(store, spy, documents, "jobs/job/states/a:0")
    with pytest.raises(StoreContended, match=r"gave up after 0\.5 s"):
        grid.write("a", 0, 6)
    assert 1 < len(tries) <= MOST_TRIES


def test_an_adoption_pauses_and_ends_when_others_change_the_job_each_time(
    store: FirestoreStore, spy: Spy, documents: Documents
) -> None:
    documents.put("jobs/go", numTasks=3, deleted=False)
    tries = interfere(store, spy, documents, "jobs/go")
    with pytest.raises(StoreContended, match=r"gave up after 0\.5 s"):
        store.adopt_job(JobRef(JobKey("go"), ""), new_incarnation())
    assert 1 < len(tries) <= MOST_TRIES


def test_a_creation_pauses_and_ends_when_others_create_and_delete_the_job_each_time(
    store: FirestoreStore, spy: Spy, documents: Documents
) -> None:
    Grid.create(store, 2, ("a",), job_id="other")  # the store has read the server's clock
    tries = itertools.count()

    def create_or_delete(method: str, request: Any) -> None:
        if method == "Commit":
            next(tries)
            documents.put("jobs/job", numTasks=3, deleted=False)
        else:
            documents.delete("jobs/job")

    store._connection.timeout = TIMEOUT
    spy.fault = create_or_delete
    with pytest.raises(StoreContended, match=r"gave up after 0\.5 s"):
        Grid.create(store, 2, ("a",))
    assert 1 < next(tries) <= MOST_TRIES


def test_a_job_is_not_created_over_a_foreign_document(store: FirestoreStore, spy: Spy, documents: Documents) -> None:
    documents.put("jobs/job", note="foreign")
    Grid.create(store, 2, ("a",), job_id="other")
    spy.clear()
    with pytest.raises(StoreError, match="document 'job' in 'jobs' is not a job") as caught:
        Grid.create(store, 2, ("a",))
    assert not isinstance(caught.value, StoreContended)
    assert spy.calls["Commit"] == 1
    assert documents.get("jobs/job") == {"note": "foreign"}
