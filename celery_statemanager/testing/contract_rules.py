"""The arguments that a Manager accepts and refuses (rules R1, R9)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from celery_statemanager.errors import ReadOnlyManager, TaskMismatch
from celery_statemanager.manager import Manager
from celery_statemanager.stores.base import Store
from celery_statemanager.testing.kit import FINISHED

LIMIT = 65_536


class RuleContract:
    """Tests of the arguments of Managers."""

    def test_a_manager_writes_only_its_own_row(self, store: Store) -> None:
        manager = Manager.create(store, "job", num_tasks=3, task_index=1)
        assert manager.set_state("a", 5, task_index=1).task_index == 1
        for row in (0, 2):
            with pytest.raises(TaskMismatch):
                manager.set_state("a", 5, task_index=row)
        assert [(state.task_index, state.version) for state in manager.list_states()] == [(1, 1)]

    def test_a_manager_without_a_row_is_read_only(self, store: Store) -> None:
        manager = Manager.create(store, "job", num_tasks=3)
        for write in (
            lambda: manager.set_state("a", 5),
            lambda: manager.set_state("a", 5, task_index=1),
            lambda: manager.progress("a", 1, 2),
            lambda: manager.begin("a"),
        ):
            with pytest.raises(ReadOnlyManager):
                write()
        assert manager.list_states() == []

    @pytest.mark.parametrize("row", [-1, 3, 10**12])
    def test_a_row_outside_the_job_is_refused(self, store: Store, row: int) -> None:
        manager = Manager.create(store, "job", num_tasks=3, task_index=1)
        for use in (
            lambda: Manager.open(store, "job", task_index=row),
            lambda: Manager.create(store, "other", num_tasks=3, task_index=row),
            lambda: manager.set_state("a", 5, task_index=row),
            lambda: manager.get_state("a", row),
            lambda: manager.list_states(task_index=row),
            lambda: manager.subscribe(task_index=row),
        ):
            with pytest.raises(ValueError, match="task_index"):
                use()

    def test_a_job_is_not_created_if_its_row_is_invalid(self, store: Store) -> None:
        with pytest.raises(ValueError, match="task_index"):
            Manager.create(store, "job", num_tasks=3, task_index=3)
        assert store.list_jobs().jobs == []

    @pytest.mark.parametrize(
        ("wrong", "kind"),
        [
            ({"tag": ""}, ValueError),
            ({"tag": "x" * 201}, ValueError),
            ({"tag": "a\nb"}, ValueError),
            ({"tag": "\ud800"}, ValueError),
            ({"tag": 7}, TypeError),
            ({"status": True}, TypeError),
            ({"status": float("nan")}, TypeError),
            ({"status": 2**31}, ValueError),
            ({"status": -(2**31) - 1}, ValueError),
            ({"message": b"bytes"}, TypeError),
            ({"message": "\udfff"}, ValueError),
            ({"payload": [1]}, TypeError),
            ({"payload": {1: 2}}, TypeError),
            ({"payload": {"x": float("inf")}}, ValueError),
            ({"payload": {"x": object()}}, TypeError),
            ({"payload": {"x": "\ud800"}}, ValueError),
            ({"event_id": ""}, ValueError),
            ({"task_index": True}, TypeError),
        ],
        ids=lambda value: ascii(value)[:30],
    )
    def test_invalid_arguments_are_refused_before_anything_is_written(
        self, store: Store, wrong: dict[str, Any], kind: type[Exception]
    ) -> None:
        manager = Manager.create(store, "job", num_tasks=2, task_index=0)
        fields: dict[str, Any] = {"tag": "a", "status": 5, **wrong}
        with pytest.raises(kind):
            manager.set_state(**fields)
        assert manager.list_states() == []

    def test_message_and_payload_share_one_limit_in_bytes(self, store: Store) -> None:
        manager = Manager.create(store, "job", num_tasks=1, task_index=0)
        message = "ß" * 1_000
        payload = {"x": "y" * (LIMIT - 2_000 - len('{"x":""}'))}
        assert manager.set_state("a", 5, message, payload).payload == payload
        assert manager.get_state("a", 0).message == message
        with pytest.raises(ValueError, match="65537 bytes"):
            manager.set_state("a", 6, message + "!", payload)
        with pytest.raises(ValueError, match="keep large data elsewhere"):
            manager.set_state("a", 6, payload={"x": "ß" * (LIMIT // 2)})
        assert manager.get_state("a", 0).version == 1

    def test_each_manager_has_its_own_size_limit(self, store: Store) -> None:
        Manager.create(store, "job", num_tasks=1)
        small = Manager.open(store, "job", task_index=0, max_state_bytes=10)
        large = Manager.open(store, "job", task_index=0, max_state_bytes=200_000)
        with pytest.raises(ValueError, match="the limit is 10 "):
            small.set_state("a", 5, "eleven chars")
        assert large.set_state("a", 5, "x" * 150_000).version == 1
        assert small.get_state("a", 0).message == "x" * 150_000

    @pytest.mark.parametrize("num_tasks", [0, -1, 10_000_001, True, 2.0, "3", None])
    def test_a_job_has_one_to_ten_million_rows(self, store: Store, num_tasks: Any) -> None:
        with pytest.raises((TypeError, ValueError), match="num_tasks"):
            Manager.create(store, "job", num_tasks=num_tasks)
        assert store.list_jobs().jobs == []

    @pytest.mark.parametrize(
        "tags",
        ["ab", (), ("a", "a"), ("a", ""), ("a", 3), {"a": [0, 1]}, {"a": [0, 1, 3]}, {"a": "012"}, {}, {"": range(3)}],
    )
    def test_a_plan_must_contain_each_tag_once_and_every_row(self, store: Store, tags: Any) -> None:
        with pytest.raises((TypeError, ValueError)):
            Manager.create(store, "job", num_tasks=3, tags=tags)
        assert store.list_jobs().jobs == []

    def test_progress_writes_percent_and_keeps_the_rest_of_the_payload(self, store: Store) -> None:
        manager = Manager.create(store, "job", num_tasks=1, task_index=0)
        manager.set_state("a", 5, payload={"checkpoint": 17})
        for done, total, status in ((0, 7, 1), (1, 1000, 1), (1, 3, 33), (299, 300, 99), (2.5, 5, 50), (7, 7, 100)):
            state = manager.progress("a", done, total, "words")
            assert (state.status, state.message) == (status, "words")
            assert state.payload == {"checkpoint": 17, "progress": {"done": done, "total": total}}
            assert state.fraction == done / total
        assert manager.get_state("a", 0) == state

    def test_a_finished_state_has_exactly_the_given_payload(self, store: Store) -> None:
        manager = Manager.create(store, "job", num_tasks=1, task_index=0)
        manager.progress("a", 1, 4)
        assert manager.set_state("a", FINISHED, payload={"rows": 3}).payload == {"rows": 3}

    def test_closing_a_manager_closes_only_its_subscriptions(self, store: Store) -> None:
        with Manager.create(store, "job", num_tasks=1, task_index=0) as manager:
            events = manager.subscribe()
        assert events.closed
        assert list(events) == []
        uses: list[Callable[[], object]] = [manager.get_state, lambda: manager.set_state("a", 5), manager.close]
        for use in uses:
            use()
