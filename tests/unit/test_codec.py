"""Wire formats: each codec reads what it writes, and the documents of the Go module."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import FrozenInstanceError, replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_statemanager import State, StateEvent, Status
from celery_statemanager.codec import (
    cell_from_fields,
    cell_to_fields,
    control_from_json,
    control_to_json,
    event_to_wire,
    from_rfc3339,
    outbox_from_json,
    outbox_to_json,
    plan_from_json,
    plan_to_json,
    state_from_wire,
    state_of,
    summary_to_wire,
)
from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import SCHEMA_VERSION, Summary, rfc3339
from celery_statemanager.plan import Plan
from celery_statemanager.records import (
    Cancellation,
    Cell,
    Claim,
    Flow,
    Generation,
    Latch,
    OutboxState,
    Place,
    Policy,
    Returned,
    new_job,
    to_datetime,
)

UTC = timezone.utc
NOON = datetime(2026, 1, 31, 12, 0, 0, 123456, UTC)

GO_DOCUMENT = """
{"jobID": "etl-42", "tag": "ingest", "taskID": 3, "version": 7, "status": 40, "message": "page 4 of 10",
 "timestamp": "2026-01-31T12:00:00.123456789Z", "eventID": "6f1c", "payload": {"rows": [1, 2], "ok": true},
 "schemaVersion": 1, "numTasks": 8, "deleted": false, "replay": true, "somethingNew": 1}
"""

states = st.builds(
    State,
    job_id=st.text(min_size=1),
    task_index=st.integers(0, 10_000_000),
    tag=st.text(min_size=1),
    status=st.integers(-(2**31), 2**31 - 1),
    message=st.none() | st.text(),
    payload=st.none() | st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.booleans())),
    timestamp=st.none() | st.datetimes(timezones=st.just(UTC)),
    version=st.integers(0, 2**40),
    event_id=st.none() | st.text(min_size=1),
    attempt=st.integers(0, 100),
    schema_version=st.integers(1, 9),
    stalled=st.booleans(),
)


def test_a_summary_names_what_was_not_run_apart_from_what_failed() -> None:
    summary = Summary(
        4, 8, 1, 1, 3, 1, State("job", 1, "a", -1), 0.5, not_run=2, failed_rows=1, max_failed=5, stalled=1
    )
    assert summary_to_wire(summary) == {
        "status": -1,
        "fraction": 0.5,
        "expected": 8,
        "notStarted": 1,
        "running": 1,
        "finished": 3,
        "failed": 1,
        "notRun": 2,
        "stalled": 1,
        "generation": 1,
        "failedRows": 1,
        "maxFailed": 5,
    }
    assert summary_to_wire(replace(summary, not_run_indexes=IndexSet([1, 2])))["notRunIDs"] == "1-2"


def test_a_summary_as_a_dict_contains_every_field_as_json() -> None:
    lowest = State("job", 1, "a", Status.FAILED, "boom", {"rows": [1]}, NOON, 3)
    kinds = ("failed", "running", "missing", "stalled")
    sets = {f"{kind}_indexes": IndexSet([3, 17, 18]) for kind in kinds}
    summary = Summary(20, 40, 1, 1, 3, 1, lowest, 1 / 3, **sets, not_run_indexes=IndexSet(), generation=2)
    assert (
        json.loads(json.dumps(summary.as_dict()))
        == summary.as_dict()
        == {
            "numTasks": 20,
            "status": -1,
            "fraction": 0.333333,
            "expected": 40,
            "notStarted": 1,
            "running": 1,
            "finished": 3,
            "failed": 1,
            "notRun": 0,
            "stalled": 0,
            "generation": 2,
            "failedRows": 0,
            "maxFailed": None,
            "lowest": lowest.as_dict(),
            "failedIDs": "3,17-18",
            "runningIDs": "3,17-18",
            "missingIDs": "3,17-18",
            "notRunIDs": "",
            "stalledIDs": "3,17-18",
        }
    )
    assert type(summary.as_dict()["status"]) is int
    bare = replace(summary, **dict.fromkeys(sets)).as_dict()
    assert [name for name in bare if name.endswith("IDs")] == ["notRunIDs"]


@given(states)
def test_a_state_round_trips(state: State) -> None:
    assert state_from_wire(json.loads(json.dumps(state.as_dict()))) == state


def test_field_names_match_those_of_the_go_module() -> None:
    state = State("etl-42", 3, "ingest", 40, "page 4 of 10", {"rows": 812}, NOON, 7, "6f1c", 2)
    assert event_to_wire(StateEvent(state, replay=True)) == {
        "jobID": "etl-42",
        "tag": "ingest",
        "taskID": 3,
        "version": 7,
        "status": 40,
        "message": "page 4 of 10",
        "timestamp": "2026-01-31T12:00:00.123456Z",
        "eventID": "6f1c",
        "payload": {"rows": 812},
        "attempt": 2,
        "schemaVersion": SCHEMA_VERSION,
        "stalled": False,
        "replay": True,
    }


def test_state_from_wire_reads_a_document_of_the_go_module() -> None:
    expected = State(
        "etl-42",
        3,
        "ingest",
        40,
        "page 4 of 10",
        {"rows": [1, 2], "ok": True},
        NOON,
        7,
        "6f1c",
        attempt=0,
        schema_version=1,
    )
    assert state_from_wire(json.loads(GO_DOCUMENT)) == expected


def test_missing_fields_become_defaults_and_the_schema_1() -> None:
    expected = State("j", 0, "t", schema_version=1)
    assert state_from_wire({"jobID": "j", "taskID": 0, "tag": "t", "status": 0}) == expected


def test_a_state_as_a_dict_has_a_plain_status_and_a_copy_of_the_payload() -> None:
    payload = {"n": 1}
    wire = State("j", 0, "t", Status.FAILED, payload=payload).as_dict()
    assert json.dumps(wire["status"]) == "-1"
    wire["payload"]["n"] = 2
    assert payload == {"n": 1}
    assert "payload" not in State("j", 0, "t").as_dict()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-31T12:00:00.123456Z", NOON),
        ("2026-01-31T12:00:00.123456789Z", NOON),
        ("2026-01-31T12:00:00Z", NOON.replace(microsecond=0)),
        ("2026-01-31T12:00:00.1Z", NOON.replace(microsecond=100_000)),
        ("2026-01-31T12:00:00.12Z", NOON.replace(microsecond=120_000)),
        ("2026-01-31T12:00:00.1234Z", NOON.replace(microsecond=123_400)),
        ("2026-01-31T12:00:00.0000001Z", NOON.replace(microsecond=0)),
        ("2026-01-31T14:00:00.123456+02:00", NOON),
        ("2026-01-31T04:30:00.123456-07:30", NOON),
        ("2026-01-31t12:00:00.123456z", NOON),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
    ],
)
def test_from_rfc3339_reads_every_precision_and_offset(text: str, expected: datetime) -> None:
    moment = from_rfc3339(text)
    assert moment == expected
    assert moment.utcoffset() == timedelta(0)


@pytest.mark.parametrize("text", ["", "yesterday", "2026-01-31", "2026-01-31T12:00:00", "2026-13-31T12:00:00Z"])
def test_from_rfc3339_rejects_other_text(text: str) -> None:
    with pytest.raises(ValueError):
        from_rfc3339(text)


@given(st.datetimes(timezones=st.just(UTC)))
def test_rfc3339_writes_utc_with_microseconds(moment: datetime) -> None:
    text = rfc3339(moment)
    assert text.endswith("Z")
    assert len(text) == len("2026-01-31T12:00:00.123456Z")
    assert from_rfc3339(text) == moment
    east = moment.replace(tzinfo=timezone(timedelta(0)))
    assert rfc3339(east) == text


@given(st.integers(0, 2**52))
def test_to_datetime_is_exact_to_the_microsecond(microseconds: int) -> None:
    moment = to_datetime(microseconds)
    assert (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) == microseconds


def test_state_of_converts_a_cell() -> None:
    cell = Cell(40, "page 4", '{"n":[1]}', 1_769_860_800_123_456, 7, "e1", 2, open=True)
    expected = State("j", 3, "t", 40, "page 4", {"n": [1]}, NOON, 7, "e1", 2)
    assert state_of("j", "t", 3, cell) == expected
    assert state_of("j", "t", 3, Cell()) == State("j", 3, "t")


def test_state_of_returns_a_regular_state() -> None:
    state = state_of("j", "t", 3, Cell(40, "page 4", None, 1_769_860_800_123_456, 7, "e1", 2))
    constructed = State("j", 3, "t", 40, "page 4", None, NOON, 7, "e1", 2)
    assert (type(state), hash(state), repr(state)) == (State, hash(constructed), repr(constructed))
    assert replace(state, status=50) == replace(constructed, status=50)
    assert pickle.loads(pickle.dumps(state)) == copy.copy(state) == constructed
    with pytest.raises(FrozenInstanceError):
        state.status = 50  # type: ignore[misc]


@pytest.mark.parametrize(
    "tags", [None, ("a",), ("b", "a", "ß"), {"a": [0, 2], "b": range(5)}, {"x": [4], "y": [0, 1, 2, 3]}]
)
def test_a_plan_round_trips(tags: Any) -> None:
    plan = None if tags is None else Plan.from_spec(5, tags)
    assert plan_from_json(plan_to_json(plan)) == plan


def test_plan_to_json_compresses_rows() -> None:
    assert plan_to_json(Plan.from_spec(10_000_000, ("b", "a"))) == '[[["b","a"],"0-9999999"]]'


def test_the_control_fields_of_a_job_round_trip() -> None:
    job = new_job("job", 2)
    waiting = Latch("sig", 1, 2, Place("queue", 3))
    changed = job.with_latches(success=waiting, failure=Latch("ß", 3), settled=Latch(None, 4))
    empty = control_from_json(control_to_json(job))
    assert empty == {
        "metadata": None,
        "latches": dict(job.latches),
        "cancelled": None,
        "flow": None,
        "results": None,
        "generation": Generation(),
        "policy": Policy(),
        "tombstoned_at": None,
    }
    values = {
        "metadata": '{"owner":"ß\\u0000"}',
        "latches": {**changed.latches, "failure.1": Latch("f", 1)},
        "cancelled": Cancellation(None, 5),
        "flow": Flow(3, "0-2,5", 9, True, "deploying"),
        "results": "some",
        "generation": Generation(2, 5, IndexSet.parse("3,17-20"), 4),
        "policy": Policy(2, 3, 4),
        "tombstoned_at": 7,
    }
    assert control_from_json(control_to_json(replace(changed, **values))) == values


def test_a_stored_cell_without_a_schema_has_schema_1() -> None:
    fields = cell_to_fields(Cell(status=40, version=2))
    assert cell_from_fields(fields).schema_version == SCHEMA_VERSION
    del fields["schema_version"]
    assert cell_from_fields(fields).schema_version == 1


def test_control_from_json_ignores_unknown_latches_and_adds_missing_ones() -> None:
    text = '{"latches":{"success":["s",1,null],"later":["x",2,3]},"cancelled":null,"flow":null,"tombstonedAt":null}'
    latches = control_from_json(text)["latches"]
    assert latches == {"success": Latch("s", 1), "failure": Latch(), "settled": Latch()}


def test_a_callback_that_an_earlier_release_published_is_not_due() -> None:
    text = '{"latches":{"settled":["s",1,2]},"cancelled":null,"flow":null,"tombstonedAt":null}'
    job = replace(new_job("job", 1), latches=control_from_json(text)["latches"])
    assert job.latches["settled"] == Latch("s", 1, 2)
    assert not job.due
    assert replace(job, latches={**job.latches, "settled": Latch("s", 1, 2, Place("queue"))}).due


def test_a_job_of_an_earlier_release_has_no_messages() -> None:
    text = '{"latches":{},"cancelled":null,"submission":[3,true,9],"tombstonedAt":null}'
    assert control_from_json(text)["flow"] is None


def test_the_flow_of_an_earlier_release_is_not_paused() -> None:
    text = '{"latches":{},"cancelled":null,"flow":[3,"",0],"tombstonedAt":null}'
    assert control_from_json(text)["flow"] == Flow(3)


def test_the_state_of_an_outbox_round_trips() -> None:
    for state in (
        OutboxState(),
        OutboxState(7, {"a/1.2": Claim(IndexSet.parse("0-2,6"), 3, 4), "ß": Claim(IndexSet(), 5)}),
        OutboxState(7, {}, Returned(IndexSet.parse("0,4-5"), IndexSet([1]))),
    ):
        assert outbox_from_json(state.claimed, outbox_to_json(state)) == state
