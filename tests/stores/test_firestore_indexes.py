"""firestore.indexes.json matches the queries that the store sends; the emulator enforces no index."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from firestore_kit import Spy

from celery_statemanager.models import Scope
from celery_statemanager.records import Flow, Policy, Write
from celery_statemanager.stores.firestore import FirestoreAddress
from celery_statemanager.testing.contract_outbox import claim, create, draft
from celery_statemanager.testing.kit import FAILED, FINISHED, Grid, every_job

FILE = Path(__file__).parents[2] / "firestore.indexes.json"
EQUAL = 5
ASCENDING, DESCENDING = 1, 2
Index = tuple[str, tuple[str, ...]]


@pytest.fixture(scope="module")
def declared() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


@pytest.fixture
def queries(firestore_emulator: str) -> list[tuple[Any, tuple[str, ...]]]:
    """Return every query, with the fields it sums, of a run that calls each method with all relevant arguments."""
    spy = Spy()
    with spy.store(FirestoreAddress(f"test-{uuid.uuid4().hex[:12]}")) as store:
        for tags in (("a", "b"), None):
            grid = Grid.create(store, 5, tags, job_id=f"job {tags}", failure="call")
            grid.begin("a", 0, owner="w")
            grid.write("a", 0, 50, attempt=1)
            grid.write("a", 1, FINISHED)
            grid.run("a", 2, FAILED)
            grid.write("a", 3, 0)
            for _ in range(2):
                for scope in (Scope(), Scope("a"), Scope(task_index=1), Scope("a", 1)):
                    store.lowest(grid.ref, scope)
                    list(store.list_states(grid.ref, scope))
                    store.watch(grid.ref, scope).close()
                for indexes in (True, False):
                    store.column_summaries(grid.ref, indexes=indexes)
                    store.column_summaries(grid.ref, "a", indexes=indexes)
                if grid.job.cancelled is None:
                    grid.cancel()
            low = Grid.create(store, 5, tags, job_id=f"low {tags}")
            low.write("a", 0, 5)
            low.lowest("a")
        for window in (None, 2):
            flow = Flow(window)
            tolerant = Grid.submitted(store, 2, job_id=f"tolerant {window}", flow=flow, policy=Policy(max_failed=1))
            tolerant.run("a", 0, FAILED)
            assert tolerant.run("a", 1, FINISHED).decided == ("success", "settled")
        mixed = create(store, 4, {"a": range(4), "b": range(3)}, max_in_flight=2, job_id="mixed")
        claim(mixed)
        mixed.begin("a", 3)
        mixed.end("a", 3, publisher="w")
        store.column_summaries(mixed.ref, "a")
        end_stage(mixed)
        store.write(mixed.ref, Write.sent_back("a", 1, "why", attempt=0))
        assert claim(mixed).again
        assert store.get_outbox(mixed.ref).claims
        assert store.get_block(mixed.ref, 2)
        store.add_block(draft(job_id="draft").ref, 0, b"messages", 0)
        assert store.drop_expired_drafts() == 1
        for due in (True, False):
            for idle in (None, store.now() + 1):
                list(every_job(store, 1, due=due, idle_before=idle))
        assert not list(every_job(store, 1, tombstoned=True))
        newest = store.newest_jobs(limit=1)
        store.newest_jobs(newest[0].cursor)
        assert list(store.list_open_attempts())
        for job in list(every_job(store)):
            store.delete_job(job)
        store.purge()
        list(store.list_workers())
    return [found for request in spy.requests if (found := query_of(request)) is not None]


def end_stage(grid: Grid) -> None:
    """Finish a stage and claim the next one, twice."""
    grid.begin("a", 0)
    end = Write.ending("a", 0, FINISHED, attempt=1)
    end.publisher, end.next_is_due, end.value = "w", True, "1"
    for _ in range(2):
        assert grid.store.write(grid.ref, replace(end)).claimed


def query_of(request: Any) -> tuple[Any, tuple[str, ...]] | None:
    if hasattr(request, "structured_aggregation_query"):
        inner = request.structured_aggregation_query
        return inner.structured_query, tuple(
            one.sum.field.field_path for one in inner.aggregations if one.HasField("sum")
        )
    return (request.structured_query, ()) if hasattr(request, "structured_query") else None


def fields_of(query: Any, sums: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return the fields compared for equality, and those that must follow in order."""
    filters = [each.field_filter for each in query.where.composite_filter.filters]
    equal = [each.field.field_path for each in filters if each.op == EQUAL]
    ordered = [each.field.field_path for each in query.order_by]
    directions = {each.direction for each in query.order_by}
    assert len(ordered) == 1 or directions <= {ASCENDING} or ordered[1:] == ["__name__"], "indexes are ascending"
    ordered += [each.field.field_path for each in filters if each.op != EQUAL]
    rest = dict.fromkeys([*ordered, *sums])
    return equal, [path for path in rest if path != "__name__" and path not in equal]


def collection_of(query: Any) -> str:
    name = query.from_[0].collection_id
    return str(name)


def test_the_composite_indexes_are_exactly_those_that_the_queries_need(
    queries: list[tuple[Any, tuple[str, ...]]], declared: dict[str, Any]
) -> None:
    """Firestore merges single-field indexes for equality; any other pair of fields needs a composite index."""
    needed: set[Index] = set()
    for query, sums in queries:
        equal, rest = fields_of(query, sums)
        if len(equal) + len(rest) > 1 and rest:
            needed.add((collection_of(query), (*equal, *rest)))
    found = {
        (each["collectionGroup"], tuple(field["fieldPath"] for field in each["fields"])) for each in declared["indexes"]
    }
    assert found == needed
    assert len(declared["indexes"]) == len(found)


def test_fields_queried_alone_are_not_exempt_and_group_queries_have_an_index(
    queries: list[tuple[Any, tuple[str, ...]]], declared: dict[str, Any]
) -> None:
    overrides = {
        (each["collectionGroup"], each["fieldPath"]): {(one["queryScope"], one["order"]) for one in each["indexes"]}
        for each in declared["fieldOverrides"]
    }
    used: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for query, sums in queries:
        equal, rest = fields_of(query, sums)
        alone = equal if not rest else rest if not equal and len(rest) == 1 else []
        for path in alone:
            place = collection_of(query), path
            orders = {each.field.field_path: each.direction for each in query.order_by}
            order = "DESCENDING" if orders.get(path) == DESCENDING else "ASCENDING"
            scope = "COLLECTION_GROUP" if query.from_[0].all_descendants else "COLLECTION"
            if place in overrides or scope == "COLLECTION_GROUP":
                used.setdefault(place, set()).add((scope, order))
    assert used == {place: indexes for place, indexes in overrides.items() if indexes}


def test_large_and_monotonic_fields_are_exempt(declared: dict[str, Any]) -> None:
    exempt = {
        (each["collectionGroup"], each["fieldPath"]) for each in declared["fieldOverrides"] if not each["indexes"]
    }
    assert {("states", path) for path in ("payload", "message", "timestamp", "kept")} <= exempt
    assert {("jobs", "plan"), ("blocks", "data"), ("outbox", "claims"), ("values", "text"), ("claims", "at")} <= exempt
