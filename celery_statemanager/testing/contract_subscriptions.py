"""Subscriptions (rule R7) and Managers that threads share (rule R11)."""

from __future__ import annotations

import gc
import threading
import time

import pytest

from celery_statemanager.manager import Manager
from celery_statemanager.models import StateEvent
from celery_statemanager.stores.base import Store
from celery_statemanager.subscription import Subscription
from celery_statemanager.testing.kit import CANCELLED, FAILED, FINISHED, PATIENCE, Grid, smoke


def identity(event: StateEvent | None) -> tuple[str, int, int, bool] | None:
    """Return what identifies an event: tag, row, version and whether it is a replay."""
    return None if event is None else (event.state.tag, event.state.task_index, event.state.version, event.replay)


def take(events: Subscription, count: int) -> list[tuple[str, int, int, bool] | None]:
    """Read events. None stands for one that did not arrive in time."""
    return [identity(events.get(PATIENCE)) for _ in range(count)]


class SubscriptionContract:
    """Tests of subscriptions."""

    @smoke
    def test_existing_states_are_replayed_oldest_first_before_live_changes(self, store: Store) -> None:
        grid = Grid.create(store)
        versions = {("b", 2): 2, ("a", 0): 1, ("a", 1): 1}
        oldest_first = grid.write_each([("b", 2), ("a", 0), ("b", 2), ("a", 1)])
        with grid.manager().subscribe() as events:
            assert take(events, 3) == [(*place, versions[place], True) for place in oldest_first]
            grid.write("a", 0, 6)
            grid.write("c", 0, 6)
            assert take(events, 2) == [("a", 0, 2, False), ("c", 0, 1, False)]
            assert events.get(0.0) is None
            assert not events.closed
            assert events.connected

    def test_a_write_before_the_first_read_is_neither_lost_nor_repeated(self, store: Store) -> None:
        grid = Grid.create(store)
        grid.write("a", 0, 5)
        with grid.manager().subscribe() as events:
            grid.write("a", 0, 6)
            grid.write("a", 1, 6)
            versions: list[tuple[int, int]] = []
            while {(0, 2), (1, 1)} - set(versions):
                event = events.get(PATIENCE)
                assert event is not None, f"only {versions} arrived"
                versions.append((event.state.task_index, event.state.version))
            assert events.get(0.0) is None
        assert versions in ([(0, 1), (0, 2), (1, 1)], [(0, 2), (1, 1)])

    @pytest.mark.parametrize(
        ("scope", "expected"),
        [
            ({"tag": "a"}, {("a", 0), ("a", 1)}),
            ({"task_index": 1}, {("a", 1), ("b", 1)}),
            ({"tag": "b", "task_index": 0}, {("b", 0)}),
        ],
    )
    def test_a_subscription_contains_only_the_cells_of_its_scope(
        self, store: Store, scope: dict[str, object], expected: set[tuple[str, int]]
    ) -> None:
        grid = Grid.create(store)
        places = [(tag, row) for tag in "ab" for row in (0, 1)]
        for place in places:
            grid.write(*place, 5)
        with grid.manager().subscribe(**scope) as events:  # type: ignore[arg-type]
            replay = take(events, len(expected))
            for place in places:
                grid.write(*place, 6)
            live = take(events, len(expected))
        assert {event and event[:2] for event in replay} == {event and event[:2] for event in live} == expected

    def test_a_slow_reader_receives_no_backlog(self, store: Store) -> None:
        grid = Grid.create(store)
        with grid.manager().subscribe() as events:
            for status in range(1, 51):
                grid.write("a", 0, status)
            got: list[StateEvent] = []
            while not got or got[-1].state.version < 50:
                event = events.get(PATIENCE)
                assert event is not None
                got.append(event)
            assert len(got) < 10, "the store kept a backlog"
            assert events.get(0.0) is None

    def test_closing_a_subscription_from_another_thread_ends_it(self, store: Store) -> None:
        events = Grid.create(store).manager().subscribe()
        got: list[list[StateEvent]] = []
        reader = threading.Thread(target=lambda: got.append(list(events)))
        reader.start()
        events.close()
        reader.join(PATIENCE)
        assert got == [[]]
        events.close()
        assert list(events) == []

    @smoke
    def test_an_abandoned_subscription_leaves_no_thread(self, store: Store) -> None:
        """The thread must end without a garbage collection, which may take long to happen."""
        grid = Grid.create(store)
        grid.write("a", 0, 5)
        before = set(threading.enumerate())
        gc.disable()
        try:
            for _ in range(3):
                assert grid.manager().subscribe().get(PATIENCE) is not None
            deadline = time.monotonic() + PATIENCE
            while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
                for thread in left:
                    if thread.ident is not None:  # a thread that is being started cannot be joined yet
                        thread.join(0.1)
            assert not left
        finally:
            gc.enable()

    @smoke
    def test_deleting_the_job_ends_a_waiting_subscription(self, store: Store) -> None:
        grid = Grid.create(store)
        events = grid.manager().subscribe()
        got: list[list[StateEvent]] = []
        reader = threading.Thread(target=lambda: got.append(list(events)))
        reader.start()
        grid.delete()
        reader.join(PATIENCE)
        assert got == [[]]
        assert events.closed

    def test_until_settled_ends_after_the_last_version_of_every_cell(self, store: Store) -> None:
        grid = Grid.create(store, 3, ("a", "b"))
        grid.run("a", 0)
        events = grid.manager().subscribe(until_settled=True)
        for tag, row in (("b", 0), ("a", 1), ("b", 1), ("a", 2)):
            grid.run(tag, row)
        grid.write("other", 1, 7)
        grid.run("b", 2, FAILED)
        newest = {(e.state.tag, e.state.task_index): e.state for e in _to_the_end(events)}
        assert events.closed
        assert sorted(newest.values(), key=str) == sorted(grid.states(), key=str)

    def test_until_settled_ends_at_once_for_a_settled_job(self, store: Store) -> None:
        grid = Grid.create(store, 1, ("a",))
        grid.run("a", 0)
        events = grid.manager().subscribe(until_settled=True)
        assert [identity(event) for event in _to_the_end(events)] == [("a", 0, 2, True)]

    def test_until_settled_ends_for_a_cancelled_job(self, store: Store) -> None:
        for tags in (("a",), None):
            grid = Grid.create(store, 2, tags, job_id=f"job {tags}")
            grid.begin("a", 0)
            events = grid.manager().subscribe(until_settled=True)
            assert take(events, 1) == [("a", 0, 1, True)]
            grid.cancel()
            grid.end("a", 0, CANCELLED)
            assert [identity(event) for event in _to_the_end(events)] == [("a", 0, 2, False)]

    def test_until_settled_without_a_plan_ends_when_every_written_cell_is_final(self, store: Store) -> None:
        grid = Grid.create(store, 2)
        events = grid.manager().subscribe(until_settled=True)
        grid.write("a", 0, FINISHED)
        assert take(events, 1) == [("a", 0, 1, False)]
        assert events.get(0.05) is None
        assert not events.closed
        grid.run("a", 1, FAILED)
        got = [identity(event) for event in _to_the_end(events)]
        assert got[-1] == ("a", 1, 2, False)

    @pytest.mark.parametrize("tags", [None, ("a", "b")])
    def test_until_settled_of_one_tag_ends_when_another_tag_settles_the_job(
        self, store: Store, tags: tuple[str, ...] | None
    ) -> None:
        grid = Grid.create(store, 1, tags)
        grid.write("b", 0, 5)
        events = grid.manager().subscribe("a", until_settled=True)
        grid.write("a", 0, FINISHED)
        assert take(events, 1) == [("a", 0, 1, False)]
        assert events.get(0.05) is None
        grid.write("b", 0, FINISHED)
        assert _to_the_end(events) == []
        assert events.closed

    @smoke
    def test_threads_may_share_a_manager(self, store: Store) -> None:
        manager = Manager.create(store, "job", num_tasks=1, task_index=0)
        threads = [
            threading.Thread(target=lambda tag=tag: [manager.set_state(tag, n) for n in range(1, 21)]) for tag in "abab"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert [manager.get_state(tag, 0).version for tag in "ab"] == [40, 40]


def _to_the_end(events: Subscription) -> list[StateEvent]:
    done: list[list[StateEvent]] = []
    thread = threading.Thread(target=lambda: done.append(list(events)), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert done, f"still waiting after {PATIENCE} s"
    return done[0]
