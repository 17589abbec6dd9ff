"""Payloads and messages (rules R9, R13)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from celery_statemanager.manager import Manager
from celery_statemanager.stores.base import Store
from celery_statemanager.testing.kit import FAILED, FINISHED, Grid

PAYLOADS: list[dict[str, Any]] = [
    {},
    {"": ""},
    {"a": None, "b": True, "c": False, "d": 0, "e": -1.5, "f": "text"},
    {"deep": {"list": [[1, [2]], {"x": [[]]}], "empty": {}}},
    {"big": 2**63, "bigger": 10**30, "small": -(2**63) - 1, "float": 1e300, "exact": 0.1},
    {"__x__": 1, "a.b": 2, "a/b": 3, "`": 4, "*": 5, "$ref": 6, "\u00e4": "\u65e5", " ": 7, "x" * 2000: 8},
    {"text": '\u0000\u0001\t\n\r\u2028 quote" back\\ slash/ \U0001f600'},
    {"nested": {str(level): {} for level in range(50)}},
]

HALF = '{"done":1,"total":2}'
MERGES: list[tuple[str | None, dict[str, Any], Any]] = [
    (None, {}, None),
    ('{"n":1}', {}, {"n": 1}),
    ('{"n":1}', {"new_progress": HALF}, {"n": 1, "progress": {"done": 1, "total": 2}}),
    (None, {"new_progress": HALF}, {"progress": {"done": 1, "total": 2}}),
    (
        '{"progress":{"done":1,"total":9,"x":0}}',
        {"status": FINISHED},
        {"progress": {"done": 9, "total": 9, "x": 0}},
    ),
    ('{"progress":{"done":1,"total":9}}', {"status": FAILED}, {"progress": {"done": 1, "total": 9}}),
    ('{"n":1}', {"status": FINISHED, "new_progress": HALF}, {"n": 1, "progress": {"done": 2, "total": 2}}),
    ('{"progress":"odd","n":"\\"progress\\""}', {"status": FINISHED}, {"progress": "odd", "n": '"progress"'}),
    ('{"progress":{"total":3}}', {"status": FINISHED}, {"progress": {"total": 3}}),
    ('{"progress":[1,2]}', {"status": 7}, {"progress": [1, 2]}),
    (
        '{"x":{"progress":{"done":1,"total":2}}}',
        {"status": FINISHED},
        {"x": {"progress": {"done": 1, "total": 2}}},
    ),
    (
        '{"big":100000000000000000000,"f":1e300,"e":[],"o":{}}',
        {"new_progress": '{"done":0.5,"total":1}'},
        {"big": 10**20, "f": 1e300, "e": [], "o": {}, "progress": {"done": 0.5, "total": 1}},
    ),
]
"""A payload, a write that keeps it, and the payload afterwards."""


class PayloadContract:
    """Tests of payloads and messages."""

    def test_set_state_replaces_the_whole_state(self, store: Store) -> None:
        manager = Manager.create(store, "job", num_tasks=1, task_index=0)
        manager.set_state("a", 5, "words", {"n": 1})
        state = manager.set_state("a", 6)
        assert (state.message, state.payload) == (None, None)
        assert manager.get_state("a", 0) == state

    @pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: ",".join(payload)[:20])
    def test_a_payload_is_read_back_unchanged(self, store: Store, payload: dict[str, Any]) -> None:
        manager = Manager.create(store, "job", num_tasks=1, task_index=0)
        assert manager.set_state("a", 5, payload=payload).payload == payload
        assert manager.get_state("a", 0).payload == payload
        assert manager.list_states()[0].payload == payload
        with manager.subscribe() as events:
            assert next(events).state.payload == payload

    @pytest.mark.parametrize(
        "message", ["", "a\u0000b\n\t", "\u65e5\u672c \U0001f600", "'; DROP TABLE x; --", "x" * 60_000]
    )
    def test_a_message_is_read_back_unchanged(self, store: Store, message: str) -> None:
        manager = Manager.create(store, "job", num_tasks=1, task_index=0)
        assert manager.set_state("a", 5, message).message == message
        assert manager.get_state("a", 0).message == message

    def test_altering_a_payload_does_not_alter_the_stored_state(self, store: Store) -> None:
        manager = Manager.create(store, "job", num_tasks=1, task_index=0)
        given: dict[str, Any] = {"list": [1], "progress": {"done": 1, "total": 4}}
        with manager.subscribe() as events:
            reads = [manager.set_state("a", 5, payload=given), next(events).state]
        given["list"].append(2)
        reads += [manager.get_state("a", 0), manager.get_state(), manager.list_states()[0], manager.summary().lowest]
        for state in reads:
            assert state.payload == {"list": [1], "progress": {"done": 1, "total": 4}}
            state.payload["list"].append(3)
            state.payload["progress"].clear()
        assert manager.get_state("a", 0).payload == {"list": [1], "progress": {"done": 1, "total": 4}}
        assert manager.summary().fraction == 0.25

    @pytest.mark.parametrize(("before", "write", "after"), MERGES)
    def test_a_write_that_keeps_the_payload_changes_only_its_progress(
        self, store: Store, before: str | None, write: dict[str, Any], after: Any
    ) -> None:
        grid = Grid.create(store)
        grid.write("a", 0, 5, payload=before)
        kept = grid.write("a", 0, **{"status": 5, **write}, keep_payload=True, payload='{"ignored":1}').cell.payload
        assert (None if kept is None else json.loads(kept)) == after
        assert grid.state("a", 0).payload == after
