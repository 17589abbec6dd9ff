"""Aggregates: the lowest status wins (rules R5, R6)."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product

import pytest

from celery_statemanager.errors import SynchronizeTimeout
from celery_statemanager.manager import Manager
from celery_statemanager.models import State
from celery_statemanager.plan import PlanSpec
from celery_statemanager.records import Delivery
from celery_statemanager.stores.base import Store
from celery_statemanager.testing import naive
from celery_statemanager.testing.kit import FAILED, FINISHED, Grid, smoke

HOLES: PlanSpec = {"a": [0, 1, 2, 3], "b": [1, 3], "c": [0, 3]}
PLANS = {"sequence": ("a", "b", "c"), "holes": HOLES, "none": None}
STATUSES = (0, 1, 2, 50, 100, 101, 2**31 - 2, FINISHED, FINISHED, FAILED, -6, -7, -8, -(2**31))
PAYLOADS = (None, '{"progress":{"done":1,"total":3}}', '{"progress":{"done":9,"total":3}}', '{"progress":1}')


class AggregateContract:
    """Tests of aggregates."""

    def test_the_lowest_cell_is_the_aggregate_of_row_column_and_grid(self, store: Store) -> None:
        grid = Grid.create(store, 2, ("a", "b"))
        for tag, row, status in (("a", 0, 50), ("a", 1, 40), ("b", 0, FINISHED), ("b", 1, 7)):
            grid.write(tag, row, status, message=f"{tag}{row}")
        manager = grid.manager()
        assert [manager.get_state(tag).message for tag in "ab"] == ["a1", "b1"]
        assert [manager.get_state(task_index=row).message for row in (0, 1)] == ["a0", "b1"]
        assert manager.get_state().message == "b1"
        grid.write("a", 0, FAILED, message="bad")
        assert [manager.get_state(**scope).message for scope in ({}, {"tag": "a"}, {"task_index": 0})] == ["bad"] * 3

    def test_a_planned_cell_that_is_missing_counts_as_not_started(self, store: Store) -> None:
        manager = Manager.create(store, "job", num_tasks=2, tags=("b", "a"))
        assert manager.get_state() == manager.get_state("a") == State("job", 0, "a")
        assert manager.get_state(task_index=1) == State("job", 1, "a")
        grid = Grid(store, manager.ref)
        grid.write("a", 0, FINISHED)
        assert manager.get_state() == State("job", 0, "b")
        grid.write("b", 0, 5)
        assert manager.get_state() == State("job", 1, "a")

    def test_without_a_plan_every_written_tag_is_expected_in_every_row(self, store: Store) -> None:
        grid = Grid.create(store, 3)
        manager = grid.manager()
        assert (manager.get_state().status, manager.get_state().version) == (0, 0)
        assert manager.summary().expected == 0
        assert manager.summary().fraction == 0.0
        grid.write("a", 1, FINISHED)
        assert manager.get_state() == State("job", 0, "a")
        for row in (0, 2):
            grid.write("a", row, FINISHED)
        assert manager.get_state().finished
        grid.write("b", 1, 5)
        assert manager.get_state() == State("job", 0, "b")
        assert manager.summary().expected == 6

    def test_a_job_is_finished_exactly_when_all_its_cells_are(self, store: Store) -> None:
        grid = Grid.create(store, 2, ("a", "b"))
        for tag, row in product("ab", (0, 1)):
            assert not grid.lowest().finished
            grid.write(tag, row, FINISHED)
        assert grid.lowest().finished

    @smoke
    def test_ties_go_to_the_lowest_row_and_then_to_the_first_tag_in_code_point_order(self, store: Store) -> None:
        grid = Grid.create(store, 11, ("ä", "b", "B", "\U0001f600", "\uffff"))
        for row, tag in product(range(11), ("ä", "b", "B", "\U0001f600", "\uffff")):
            grid.write(tag, row, 50)
        for tag, row, winner in (
            ("\U0001f600", 10, None),
            ("\uffff", 10, None),
            ("ä", 9, None),
            ("b", 9, None),
            ("B", 9, None),
        ):
            grid.write(tag, row, 7)
            found = grid.lowest()
            assert (found.tag, found.task_index) == (winner or tag, row)
        grid.write("\uffff", 2, 7)
        grid.write("\U0001f600", 2, 7)
        assert (grid.lowest().tag, grid.lowest().task_index) == ("\uffff", 2)
        assert (grid.lowest(row=2).tag, grid.lowest("\U0001f600").task_index) == ("\uffff", 2)

    def test_reading_an_unknown_tag_raises_an_error_that_names_the_planned_tags(self, store: Store) -> None:
        manager = Manager.create(store, "job", num_tasks=2, task_index=1, tags=("ingest", "export"))
        reads: list[Callable[[], object]] = [
            lambda: manager.get_state("typo"),
            lambda: manager.get_state("typo", 0),
            lambda: manager.summary("typo"),
            lambda: manager.summary("typo", indexes=False),
            lambda: manager.list_states("typo"),
            lambda: manager.list_states("typo", 1),
        ]
        for read in reads:
            with pytest.raises(ValueError, match=r"job 'job' has no tag 'typo'.* 'ingest', 'export'"):
                read()
        manager.set_state("typo", 0, "written, though not started")
        assert [read() for read in reads] != []
        assert manager.get_state("typo", 0).version == 0
        assert (manager.get_state("typo").status, manager.get_state("typo", 1).version) == (0, 1)
        assert manager.summary("typo").expected == 2
        assert manager.list_states("typo", 0) == []

    def test_a_job_without_a_plan_accepts_reads_of_any_tag(self, store: Store) -> None:
        manager = Manager.create(store, "job", num_tasks=2)
        assert manager.get_state("any") == State("job", 0, "any")
        assert manager.summary("any").expected == 2
        assert manager.list_states("any") == []

    def test_subscriptions_and_barriers_accept_a_tag_that_is_not_written_yet(self, store: Store) -> None:
        manager = Manager.create(store, "job", num_tasks=1, task_index=0, tags=("ingest",))
        with manager.subscribe("extra") as events:
            manager.set_state("extra", 5)
            assert next(events).state.status == 5
        with pytest.raises(SynchronizeTimeout):
            manager.synchronize("later", 5, timeout=0)

    def test_unplanned_cells_are_readable_but_do_not_count(self, store: Store) -> None:
        grid = Grid.create(store, 4, HOLES)
        manager = grid.manager()
        for tag, row in (("a", 0), ("a", 1), ("a", 2), ("a", 3), ("b", 1), ("b", 3), ("c", 0), ("c", 3)):
            grid.write(tag, row, FINISHED)
        grid.write("other", 2, -50)
        grid.write("b", 0, -60)
        assert manager.get_state().finished
        assert all(manager.get_state(task_index=row).finished for row in range(4))
        assert manager.get_state("b").finished
        assert (manager.get_state("other").status, manager.get_state("other", 2).status) == (-50, -50)
        assert manager.get_state("b", 0).status == -60
        grid.write("other", 2, 50)
        assert manager.get_state("other") == State("job", 0, "other")
        assert {(state.tag, state.task_index) for state in manager.list_states()} >= {("other", 2), ("b", 0)}
        summary = manager.summary()
        assert (summary.expected, summary.finished, summary.failed) == (8, 8, 0)
        assert (manager.summary("other").expected, manager.summary("other").running) == (4, 1)
        assert manager.summary("b").expected == 2

    def test_a_tie_between_a_failed_and_a_blocked_cell_goes_to_the_lowest_row(self, store: Store) -> None:
        grid = Grid.create(store, 6, {"scan": range(6), "save": range(5)})
        grid.run("scan", 1, -5)
        grid.write("save", 3, -5)
        assert grid.lowest("save").task_index == 1
        grid.write("save", 0, -5)
        assert grid.lowest("save").task_index == 0
        grid.run("scan", 4, -9)
        assert (grid.lowest("save").task_index, grid.lowest("save").status) == (4, -9)
        grid.write("save", 2, -10)
        assert (grid.lowest("save").task_index, grid.lowest().task_index) == (2, 2)

    @pytest.mark.parametrize("tags", PLANS.values(), ids=PLANS)
    @pytest.mark.parametrize("seed", range(3))
    def test_aggregates_and_tallies_equal_a_recount_after_random_operations(
        self, store: Store, tags: PlanSpec | None, seed: int
    ) -> None:
        rng = random.Random(seed)
        grid = Grid.create(store, 4, tags)
        seen: set[str] = set()
        for step in range(240):
            tag, row = rng.choice("abcz"), rng.randrange(4)
            before = grid.cell(tag, row).version
            _apply_random_operation(grid, rng, tag, row)
            seen |= {tag} if grid.cell(tag, row).version > before else set()
            if step == 200 and seed == 2:
                grid.cancel()
            if step % 12 == 0 or step > 230:
                _recount(grid, seen)


def _apply_random_operation(grid: Grid, rng: random.Random, tag: str, row: int) -> None:
    kind = rng.randrange(4)
    open_attempt = grid.cell(tag, row).open
    if kind == 0:
        grid.begin(tag, row, delivery=Delivery(0, 0, rng.randrange(3)), owner="w")
    elif kind == 1 and open_attempt:
        grid.end(tag, row, rng.choice(STATUSES))
    elif grid.job.cancelled is None:
        fields = {"keep_payload": True} if kind == 2 else {"payload": rng.choice(PAYLOADS)}
        grid.write(tag, row, rng.choice(STATUSES), **fields)


def _recount(grid: Grid, seen: set[str]) -> None:
    cells, states = naive.read_grid(grid, "abcz")
    naive.check_grid(grid, naive.expected(grid.job, seen), cells, states)
