"""Documents read and written with Google's own client, as the Go module and browsers see them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from google.cloud import firestore

from celery_statemanager import Manager, Status
from celery_statemanager.models import SCHEMA_VERSION
from celery_statemanager.stores.firestore import FirestoreAddress, FirestoreStore

GO_JOB = {"numTasks": 3, "deleted": False, "schemaVersion": 1}
WRITTEN = datetime(2025, 3, 4, 5, 6, 7, 891_000, tzinfo=timezone.utc)
GO_STATE = {
    "jobID": "load-42",
    "taskID": 1,
    "tag": "extract",
    "status": 40,
    "message": "page 4 of 10",
    "timestamp": WRITTEN,
    "version": 3,
    "eventID": "0b5c",
    "payload": {"rows": 812, "tables": ["a", "b"], "ratio": 0.5, "done": False, "next": None, "deep": {"x": {}}},
    "schemaVersion": 1,
}


@pytest.fixture
def project(firestore_emulator: str) -> str:
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def google(project: str) -> Iterator[Any]:
    client = firestore.Client(project=project)
    yield client
    client.close()


@pytest.fixture
def store(project: str) -> Iterator[FirestoreStore]:
    with FirestoreStore(FirestoreAddress(project), timeout=10.0) as store:
        yield store


def test_documents_of_the_go_module_are_read_exactly(google: Any, store: FirestoreStore) -> None:
    google.document("jobs/load-42").set(GO_JOB)
    google.document("jobs/load-42/states/extract:1").set(GO_STATE)
    manager = Manager.open(store, "load-42")
    (state,) = manager.list_states()
    assert manager.num_tasks == 3
    assert (state.job_id, state.task_index, state.tag, state.status) == ("load-42", 1, "extract", 40)
    assert (state.message, state.timestamp, state.version, state.event_id) == ("page 4 of 10", WRITTEN, 3, "0b5c")
    assert (state.payload, state.schema_version) == (GO_STATE["payload"], 1)


def test_our_documents_equal_those_of_the_go_module(google: Any, store: FirestoreStore) -> None:
    before = datetime.now(timezone.utc) - timedelta(minutes=1)
    manager = Manager.create(store, "load-42", num_tasks=3, task_index=1)
    for status in (20, 30):
        manager.set_state("extract", status)
    payload: Any = GO_STATE["payload"]
    manager.set_state("extract", 40, "page 4 of 10", payload, event_id="0b5c")
    job, state = (google.document(path).get().to_dict() for path in ("jobs/load-42", "jobs/load-42/states/extract:1"))
    ours = {"schemaVersion": SCHEMA_VERSION}
    assert {name: job[name] for name in GO_JOB} == {**GO_JOB, **ours}
    assert {name: state[name] for name in GO_STATE} == {**GO_STATE, **ours, "timestamp": state["timestamp"]}
    assert before < state["timestamp"] < before + timedelta(minutes=2)
    assert {type(state[name]) for name in ("taskID", "status", "version", "schemaVersion")} == {int}


def test_documents_of_the_go_module_may_lack_optional_fields(google: Any, store: FirestoreStore) -> None:
    google.document("jobs/old").set({"numTasks": 1})
    google.document("jobs/old/states/extract:0").set({"taskID": 0, "tag": "extract", "status": int(Status.FINISHED)})
    manager = Manager.open(store, "old")
    state = manager.get_state("extract", 0)
    assert (state.job_id, state.finished, state.message, state.payload, state.version) == ("old", True, None, None, 1)
    assert manager.summary().finished == 1


def test_a_payload_may_contain_firestore_types_beside_json(google: Any, store: FirestoreStore) -> None:
    google.document("jobs/load-42").set(GO_JOB)
    payload = {"at": WRITTEN, "raw": b"\x00\xff", "where": firestore.GeoPoint(1.5, -2), "like": google.document("a/b")}
    google.document("jobs/load-42/states/extract:1").set({**GO_STATE, "payload": payload})
    assert Manager.open(store, "load-42").get_state("extract", 1).payload == {
        "at": "2025-03-04T05:06:07.891000Z",
        "raw": "AP8=",
        "where": {"latitude": 1.5, "longitude": -2.0},
        "like": f"projects/{google.project}/databases/(default)/documents/a/b",
    }


def nested(depth: int) -> dict[str, Any]:
    return {"x": nested(depth - 1)} if depth > 1 else {}


@pytest.mark.parametrize(
    ("payload", "native"),
    [
        ({}, True),
        ({"i": 2**63 - 1, "j": -(2**63)}, True),
        ({"i": 2**63}, False),
        ({"f": 1.0, "tiny": 5e-324, "zero": -0.0}, True),
        ({"list": [1, "two", None, {"three": [3]}]}, True),
        ({"list": [[1]]}, False),
        ({"list": [{"inner": [[]]}]}, False),
        ({"ключ 🔑": "значение", "a.b`c": 1, "with/slash": 2, "*": 3}, True),
        ({"": 1}, False),
        ({"__name__": 1}, False),
        ({"__": 1, "__x": 2, "x__": 3}, True),
        ({"é" * 350: {}}, True),
        ({"é" * 351: 1}, False),
        ({"`" * 350: [{"\\" * 350: 1}]}, True),
        ({"k" * 350: [{"k" * 351: 1}]}, False),
        (nested(18), True),
        (nested(25), False),
        ({"text": "x" * 60_000}, True),
        ({"nul": "\x00", "line": "a\r\nb\u2028"}, True),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_payload_is_a_native_map_where_possible_and_is_read_back_unchanged(
    google: Any, store: FirestoreStore, payload: dict[str, Any], native: bool
) -> None:
    manager = Manager.create(store, "job", num_tasks=1, task_index=0)
    manager.set_state("a", 5, payload=payload)
    stored = google.document("jobs/job/states/a:0").get().to_dict()
    assert (stored["payload"], "payloadJSON" in stored) == ((payload, False) if native else (None, True))
    read_back = manager.get_state("a", 0).payload
    assert read_back == payload
    assert [type(value) for value in (read_back or {}).values()] == [type(payload[key]) for key in read_back or {}]
