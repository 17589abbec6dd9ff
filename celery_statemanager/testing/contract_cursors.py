"""Cursors: any process continues where another one stopped reading (rule R24)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from celery_statemanager.errors import JobNotFound
from celery_statemanager.models import Scope, StateEvent
from celery_statemanager.records import Batch
from celery_statemanager.stores.base import Store
from celery_statemanager.subscription import Subscription
from celery_statemanager.testing.kit import FAILED, FINISHED, PATIENCE, Grid, read_until, smoke

Change = tuple[str, int, int]
"""Tag, row and version."""


def changes(batch: Batch) -> list[Change]:
    """Return what a batch contains."""
    return [(state.tag, state.task_index, state.version) for state in batch.states]


def change_of(event: StateEvent) -> Change:
    """Return the cell and the version of an event."""
    return event.state.tag, event.state.task_index, event.state.version


def drain(events: Subscription) -> list[StateEvent]:
    """Read all events that are available, and close the subscription."""
    with events:
        return list(iter(lambda: events.get(0.0), None))


def read_all(store: Store, grid: Grid, since: str) -> list[Change]:
    """Return the changes since a cursor up to now."""
    found: list[Change] = []
    with closing(store.watch(grid.ref, Scope(), since)) as watch:
        while batch := watch.read(0.0).states:
            found += changes(Batch(batch))
    return found


class CursorContract:
    """Tests of watches and subscriptions that continue at a cursor."""

    @smoke
    def test_a_watch_continues_at_the_cursor_of_another_store_object(self, store: Store, other_store: Store) -> None:
        grid = Grid.create(store)
        grid.write("a", 0, 5)
        with closing(store.watch(grid.ref, Scope())) as watch:
            grid.write("a", 1, 5)
            read_until(watch, lambda batch: bool(batch.states))
            cursor = watch.cursor
        for status in (6, 7):
            grid.write("a", 1, status)
        grid.write("b", 2, 5)
        with closing(other_store.watch(grid.ref, Scope(), cursor)) as watch:
            assert changes(watch.read(0.0)) == [("a", 1, 3), ("b", 2, 1)]
            assert watch.read(0.0).states == []
            grid.write("a", 0, 6)
            assert changes(read_until(watch, lambda batch: bool(batch.states))) == [("a", 0, 2)]

    def test_a_watch_that_continues_where_nothing_has_changed_reads_nothing(self, store: Store) -> None:
        grid = Grid.create(store)
        with closing(store.watch(grid.ref, Scope())) as unwritten:
            cursors = [unwritten.cursor]
        grid.write("a", 0, 5)
        with closing(store.watch(grid.ref, Scope())) as written:
            cursors.append(written.cursor)
        assert read_all(store, grid, cursors[0]) == [("a", 0, 1)]
        assert read_all(store, grid, cursors[1]) == []

    def test_each_state_of_a_batch_has_a_cursor(self, store: Store) -> None:
        grid = Grid.create(store, 5)
        found: dict[str, Change] = {}
        with closing(store.watch(grid.ref, Scope())) as watch:
            written = grid.write_each(("a", row) for row in (3, 0, 2, 4))
            while len(found) < 4:
                batch = watch.read(PATIENCE)
                found |= dict(zip(batch.cursors, changes(batch)))
                assert len(batch.cursors) == len(batch.states)
                assert batch.cursors[-1:] in ([], [watch.cursor])
        order = [row for _, row, _ in found.values()]
        assert order == [row for _, row in written]
        for number, cursor in enumerate(found, 1):
            assert [row for _, row, _ in read_all(store, grid, cursor)] == order[number:]
            assert cursor.isascii()
            assert len(cursor) <= 100

    def test_a_watch_continues_in_its_scope(self, store: Store) -> None:
        grid = Grid.create(store)
        with closing(store.watch(grid.ref, Scope("a"))) as watch:
            cursor = watch.cursor
        for tag, row in (("a", 0), ("b", 0), ("a", 1)):
            grid.write(tag, row, 5)
        for scope, expected in ((Scope("a"), 2), (Scope(task_index=0), 2), (Scope("a", 1), 1), (Scope("c"), 0)):
            with closing(store.watch(grid.ref, scope, cursor)) as watch:
                assert len(watch.read(0.0).states) == expected

    def test_a_watch_that_continues_reports_a_changed_job_record(self, store: Store) -> None:
        grid = Grid.create(store, 1, ("a",))
        with closing(store.watch(grid.ref, Scope())) as watch:
            cursor = watch.cursor
        grid.cancel()
        with closing(store.watch(grid.ref, Scope(), cursor)) as watch:
            assert read_until(watch, lambda batch: batch.job_changed).states == []

    def test_more_changes_than_one_read_returns_are_all_read(self, store: Store) -> None:
        grid = Grid.create(store, 40)
        with closing(store.watch(grid.ref, Scope())) as watch:
            cursor = watch.cursor
        for row in range(40):
            grid.write("a", row, 5)
        assert read_all(store, grid, cursor) == [("a", row, 1) for row in range(40)]

    def test_a_deleted_job_has_nothing_to_continue(self, store: Store) -> None:
        grid = Grid.create(store)
        with closing(store.watch(grid.ref, Scope())) as watch:
            cursor = watch.cursor
        store.delete_job(grid.job)
        Grid.create(store)
        with pytest.raises(JobNotFound):
            store.watch(grid.ref, Scope(), cursor).read(0.0)

    @pytest.mark.parametrize("cursor", ["", "x", "1-2-3-4-5", "-1-2", "1-x-1", "٣-1", "9" * 30 + "-1"])
    def test_a_watch_refuses_an_invalid_cursor(self, store: Store, cursor: str) -> None:
        grid = Grid.create(store)
        with pytest.raises(ValueError, match="since must be the cursor of an event"):
            store.watch(grid.ref, Scope(), cursor)

    @pytest.mark.parametrize(
        "cursor", ["", "x", "a:b:c", "abc:", "abc:1-2@", "abc:1-2@1.2", "abc:1\n-2", "abc:1-2@1.2.a b", "é:1"]
    )
    def test_a_subscription_refuses_an_invalid_cursor(self, store: Store, cursor: str) -> None:
        with pytest.raises(ValueError, match="since must be the cursor of an event"):
            Grid.create(store).manager().subscribe(since=cursor)
        with pytest.raises(TypeError):
            Grid.create(store, job_id="other").manager().subscribe(since=7)  # type: ignore[arg-type]

    def test_a_subscription_continues_after_each_event_of_another(self, store: Store, other_store: Store) -> None:
        grid = Grid.create(store, 4)
        for tag, row in (("b", 2), ("ü/@.%", 0), ("b", 1), ("b", 2)):
            grid.write(tag, row, 5)
        other = grid.seen_by(other_store).manager()
        with grid.manager().subscribe() as events:
            got = [events.get(PATIENCE) for _ in range(3)]
            for tag, row in (("b", 3), ("b", 1)):
                grid.write(tag, row, 6)
                got.append(events.get(PATIENCE))
        newest = {(state.tag, state.task_index, state.version) for state in grid.states()}
        for number, event in enumerate(got, 1):
            assert event is not None
            assert event.cursor.isascii()
            found = drain(other.subscribe(since=event.cursor))
            passed = {change_of(each) for each in got[:number] if each}
            assert newest <= passed | {*map(change_of, found)}
            assert len(found) == len({change_of(each) for each in found})
            assert not passed & {*map(change_of, found)}
            assert not any(each.resync for each in found)

    def test_what_existed_is_no_replay_for_a_subscription_that_continues(self, store: Store) -> None:
        grid = Grid.create(store)
        grid.write("a", 0, 5)
        (event,) = drain(grid.manager().subscribe())
        assert event.replay
        assert drain(grid.manager().subscribe(since=event.cursor)) == []
        grid.write("a", 1, 5)
        (event,) = drain(grid.manager().subscribe(since=event.cursor))
        assert (change_of(event), event.replay) == (("a", 1, 1), False)

    @smoke
    def test_a_cursor_of_an_earlier_job_of_the_name_causes_a_resync(self, store: Store) -> None:
        grid = Grid.create(store)
        grid.write("a", 0, 5)
        (event,) = drain(grid.manager().subscribe())
        grid.delete()
        again = Grid.create(store)
        written = [(*place, 1) for place in again.write_each([("b", 2), ("b", 1)])]
        first, *found = drain(again.manager().subscribe(since=event.cursor))
        assert first.resync
        assert (first.state.tag, first.state.version) == ("", 0)
        assert [change_of(each) for each in found] == written
        assert all(each.replay and not each.resync for each in found)
        rest = drain(again.manager().subscribe(since=first.cursor))
        assert [change_of(each) for each in rest] == written
        assert drain(again.manager().subscribe(since=found[-1].cursor)) == []

    def test_a_subscription_that_continues_ends_when_the_job_settles(self, store: Store) -> None:
        grid = Grid.create(store, 3, ("a",))
        for row in range(2):
            grid.run("a", row)
        *_, event = drain(grid.manager().subscribe())
        with grid.manager().subscribe(until_settled=True, since=event.cursor) as events:
            assert events.get(0.0) is None
            grid.run("a", 2, FAILED)
            assert [change_of(each) for each in _to_the_end(events)][-1] == ("a", 2, 2)
        with grid.manager().subscribe(until_settled=True, since=event.cursor) as events:
            assert [change_of(each) for each in _to_the_end(events)] == [("a", 2, 2)]

    @smoke
    def test_readers_that_continue_again_and_again_miss_no_change_of_concurrent_writers(
        self, store: Store, other_store: Store
    ) -> None:
        grid, rows, writes = Grid.create(store, 4), 4, 12
        with grid.manager().subscribe() as events:
            assert events.get(0.0) is None
            grid.write("a", 0, 1)
            first = events.get(PATIENCE)
        assert first is not None

        def write(row: int) -> None:
            for status in range(2, writes + 2):
                grid.write("a", row, status)
            grid.write("a", row, FINISHED)

        threads = [threading.Thread(target=write, args=(row,)) for row in range(rows)]
        for thread in threads:
            thread.start()
        newest, cursor = {0: 1}, first.cursor
        stores = [store, other_store]
        while any(thread.is_alive() for thread in threads) or len(newest) < rows:
            cursor = _continue(grid.seen_by(stores[0]), cursor, newest)
            stores.reverse()
        for thread in threads:
            thread.join(PATIENCE)
        _continue(grid, cursor, newest)
        assert newest == {row: grid.cell("a", row).version for row in range(rows)}


def _continue(grid: Grid, cursor: str, newest: dict[int, int]) -> str:
    """Read a few changes since a cursor, check that none goes back, and return the new cursor."""
    for event in drain(grid.manager().subscribe(since=cursor)):
        assert not event.resync
        assert event.state.version >= newest.get(event.state.task_index, 0)
        newest[event.state.task_index] = event.state.version
        cursor = event.cursor
    return cursor


def _to_the_end(events: Subscription) -> Iterator[StateEvent]:
    while event := events.get(PATIENCE):
        yield event
    assert events.closed
