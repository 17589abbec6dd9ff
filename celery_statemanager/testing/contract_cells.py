"""Cells: versions, times, event ids, names (rules R2, R3, R4, R9)."""

from __future__ import annotations

from datetime import timedelta, timezone
from itertools import product

from celery_statemanager.manager import Manager
from celery_statemanager.models import State
from celery_statemanager.records import to_datetime
from celery_statemanager.stores.base import Store
from celery_statemanager.testing.kit import FINISHED, FakeClock, Grid, smoke

NAMES = [
    "a", "A", "a:b", "a/b", ".", "..", "__x__", "__", "a b", " ", " a", "a ", "*", "a*", "a?", "[a]", "{a}", "a%3Ab",
    "a\\b", "a'b", 'a"b', "a;b", "a,b", "a|b", "a\u00a0b", "\u00e4", "a\u0308", "\u00c4", "\u65e5\u672c", "\U0001f600",
    "\u0130", "a\u200bb", "null", "None", "0", "00", "-1", "1e3", "%", "_", "#", "$", "`", "~", "x" * 200,
    "\u00df" * 200,
]  # fmt: skip
"""Names that a store might confuse with each other or with its own syntax."""


class CellContract:
    """Tests of single cells."""

    @smoke
    def test_versions_count_the_writes_of_each_cell_from_one(self, store: Store) -> None:
        grid = Grid.create(store)
        for version in (1, 2, 3):
            for tag, row in product("ab", (0, 2)):
                assert grid.write(tag, row, 5).cell.version == version
        assert grid.begin("a", 0).cell.version == 4
        assert grid.end("a", 0).cell.version == 5
        assert [state.version for state in grid.states(row=2)] == [3, 3]
        assert grid.cell("a", 1).version == 0
        assert store.get_cell(grid.ref, "a", 1) is None

    def test_a_write_appears_in_its_reply_and_in_every_read(self, store: Store) -> None:
        grid = Grid.create(store)
        cell = grid.write("a", 1, 42, event_id="e1", message="wörds", payload='{"rows":[1,2]}').cell
        assert (cell.status, cell.message, cell.event_id, cell.attempt, cell.open) == (42, "wörds", "e1", 0, False)
        moment = to_datetime(cell.timestamp)
        state = State("job", 1, "a", 42, "wörds", {"rows": [1, 2]}, moment, 1, "e1")
        assert grid.cell("a", 1) == cell
        assert grid.state("a", 1) == state
        assert grid.states() == grid.states("a") == grid.states(row=1) == grid.states("a", 1) == [state]
        assert grid.states("b") == grid.states(row=0) == []

    def test_a_cell_never_written_reads_as_not_started(self, store: Store) -> None:
        manager = Manager.create(store, "job", num_tasks=2)
        assert manager.get_state("a", 1) == State("job", 1, "a")

    def test_every_int32_is_a_status(self, store: Store) -> None:
        grid = Grid.create(store)
        for status in (-(2**31), -99, -1, 0, 1, 100, 2**31 - 2, 2**31 - 1):
            grid.write("a", 0, status)
            assert grid.state("a", 0).status == grid.lowest("a", 0).status == status

    def test_timestamps_come_from_the_store_and_never_decrease_within_a_job(self, store: Store) -> None:
        grid = Grid.create(store)
        before = store.now()
        stamps = [grid.write(tag, row, 5).cell.timestamp for tag, row in product("ab", range(3))]
        assert before <= stamps[0] and stamps[-1] <= store.now() and stamps == sorted(stamps)
        moment = grid.state("a", 0).timestamp
        assert moment == to_datetime(stamps[0])
        assert moment is not None and moment.utcoffset() == timedelta(0) and moment.tzinfo is timezone.utc

    def test_timestamps_do_not_follow_a_clock_that_is_set_back(self, clocked_store: Store, clock: FakeClock) -> None:
        grid = Grid.create(clocked_store)
        first = grid.write("a", 0, 5).cell.timestamp
        clock.advance(-3600)
        second = grid.write("a", 1, 5).cell.timestamp
        assert second >= first
        clock.advance(7200)
        assert grid.write("a", 2, 5).cell.timestamp == clocked_store.now()

    def test_states_are_listed_by_time_then_tag_then_row(self, clocked_store: Store, clock: FakeClock) -> None:
        grid = Grid.create(clocked_store, 12)
        for tag, row in (("b", 10), ("a", 2), ("B", 3), ("a", 10), ("a", 9), ("ä", 0)):
            grid.write(tag, row, 5)
        clock.advance(1)
        grid.write("A", 0, 5)
        grid.write("a", 2, 6)
        order = [(state.tag, state.task_index) for state in grid.states()]
        assert order == [("B", 3), ("a", 9), ("a", 10), ("b", 10), ("ä", 0), ("A", 0), ("a", 2)]
        assert [state.task_index for state in grid.states("a")] == [9, 10, 2]

    @smoke
    def test_a_write_with_the_current_event_id_changes_nothing_and_returns_the_state(self, store: Store) -> None:
        manager = Manager.create(store, "job", num_tasks=1, task_index=0, tags=("a",))
        first = manager.set_state("a", 5, "once", {"n": 1}, event_id="e1")
        with manager.subscribe() as events:
            assert next(events).state == first
            assert manager.set_state("a", 9, "twice", event_id="e1") == first
            assert manager.progress("a", 1, 2, event_id="e1") == first
            second = manager.set_state("a", 9, event_id="e2")
            assert next(events).state == second
        assert second.version == 2

    def test_a_write_with_an_older_event_id_is_a_new_write(self, store: Store) -> None:
        manager = Manager.create(store, "job", num_tasks=1, task_index=0)
        for version, event_id in enumerate(("e1", "e2", "e1", "e2"), start=1):
            state = manager.set_state("a", 5, event_id=event_id)
            assert (state.version, state.event_id) == (version, event_id)

    def test_several_cells_may_have_the_same_event_id(self, store: Store) -> None:
        grid = Grid.create(store)
        for place in product("ab", range(3)):
            assert grid.write(*place, 5, event_id="same").changed
            assert not grid.write(*place, 6, event_id="same").changed

    def test_every_write_and_begin_has_its_own_event_id(self, store: Store) -> None:
        manager = Manager.create(store, "job", num_tasks=1, task_index=0)
        ids = {manager.set_state("a", 5).event_id, manager.progress("a", 1, 2).event_id}
        manager.begin("a")
        ids.add(manager.get_state("a", 0).event_id)
        assert len(ids) == 3 and all(ids)

    def test_a_repeated_write_is_accepted_despite_every_fence(self, store: Store) -> None:
        grid = Grid.create(store, tags=("a",))
        grid.begin("a", 0)
        grid.end("a", 0, event_id="end")
        assert grid.write("a", 0, FINISHED, event_id="end", attempt=7).changed is False
        grid.cancel()
        again = grid.write("a", 0, 5, event_id="end")
        assert (again.changed, again.cell.status, again.decided) == (False, FINISHED, ())

    def test_different_names_never_share_a_cell_or_a_job(self, store: Store) -> None:
        grid = Grid.create(store, 1)
        for status, name in enumerate(NAMES, start=1):
            assert grid.write(name, 0, status).cell.version == 1
            Grid.create(store, status, job_id=name, run_token=name).write(name, 0, status)
        for status, name in enumerate(NAMES, start=1):
            assert grid.state(name, 0).status == grid.lowest(name).status == status
            assert grid.manager().summary(name).running == 1
            assert [state.tag for state in grid.states(name)] == [name]
            other = Manager.open(store, name, run_token=name)
            assert (other.num_tasks, other.get_state().status) == (status, 0 if status > 1 else status)
        assert len(grid.states()) == len(NAMES)

    @smoke
    def test_job_id_and_run_token_are_stored_as_a_pair(self, store: Store) -> None:
        pairs = [
            ("a", "b:c"),
            ("a:b", "c"),
            ("a:b:c", None),
            ("a", "b"),
            ("a/b", None),
            ("a", "b/c"),
            ("ab", "c"),
            ("a", "bc"),
        ]
        for rows, (job_id, token) in enumerate(pairs, start=1):
            Grid.create(store, rows, job_id=job_id, run_token=token)
        for rows, (job_id, token) in enumerate(pairs, start=1):
            assert Manager.open(store, job_id, run_token=token).num_tasks == rows

    def test_a_planned_tag_may_have_any_name(self, store: Store) -> None:
        manager = Manager.create(store, "job", num_tasks=1, task_index=0, tags=NAMES)
        assert manager.tags == Manager.open(store, "job").tags == tuple(NAMES)
        for name in NAMES:
            manager.set_state(name, FINISHED)
        assert manager.get_state().finished
        assert manager.summary().finished == len(NAMES)
