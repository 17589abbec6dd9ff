"""Tests of aggregates: the lowest status, and counts that agree with a recount (rules R5, R6)."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product

import pytest

from celery_statemanager.errors import SynchronizeTimeout
from celery_statemanager.manager import Manager
from celery_statemanager.models import State
from celery_statemanager.plan import PlanSpec
from celery_statemanager.records import Delivery, Tally
from celery_statemanager.stores.base import Store
from celery_statemanager.testing import naive
from celery_statemanager.testing.kit import FAILED, FINISHED, Grid, smoke

HOLES: PlanSpec = {"a": [0, 1, 2, 3], "b": [1, 3], "c": [0, 3]}
PLANS = {"sequence": ("a", "b", "c"), "holes": HOLES, "none": None}
STATUSES = (0, 1, 2, 50, 100, 101, 2**31 - 2, FINISHED, FINISHED, FAILED, -6, -7, -8, -(2**31))
PAYLOADS = (None, '{"progress":{"done":1,"total":3}}', '{"progress":{"done":9,"total":3}}', '{"progress":1}')


class AggregateContract:
    """The rules of aggregates and summaries."""

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

    def test_without_a_plan_every_tag_seen_is_expected_of_every_row(self, store: Store) -> None:
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

    def test_the_job_is_finished_exactly_when_every_cell_is(self, store: Store) -> None:
        grid = Grid.create(store, 2, ("a", "b"))
        for tag, row in product("ab", (0, 1)):
            assert not grid.lowest().finished
            grid.write(tag, row, FINISHED)
        assert grid.lowest().finished

    @smoke
    def test_ties_go_to_the_lowest_row_then_to_the_tag_first_in_code_points(self, store: Store) -> None:
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

    def test_a_tag_that_is_neither_planned_nor_written_is_refused_with_the_tags_there_are(self, store: Store) -> None:
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

    def test_every_tag_may_be_read_in_a_job_without_a_plan(self, store: Store) -> None:
        manager = Manager.create(store, "job", num_tasks=2)
        assert manager.get_state("any") == State("job", 0, "any")
        assert manager.summary("any").expected == 2
        assert manager.list_states("any") == []

    def test_what_waits_accepts_a_tag_that_will_be_written(self, store: Store) -> None:
        manager = Manager.create(store, "job", num_tasks=1, task_index=0, tags=("ingest",))
        with manager.subscribe("extra") as events:
            manager.set_state("extra", 5)
            assert next(events).state.status == 5
        with pytest.raises(SynchronizeTimeout):
            manager.synchronize("later", 5, timeout=0)

    def test_unplanned_cells_are_kept_and_readable_but_do_not_count(self, store: Store) -> None:
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

    @smoke
    def test_a_summary_counts_cells_and_names_rows(self, store: Store) -> None:
        grid = Grid.create(store, 21, ("a", "b"))
        for row in (3, 17, 18, 19, 20):
            grid.write("a", row, FAILED)
        grid.write("b", 3, 40)
        grid.write("b", 4, FINISHED)
        grid.write("b", 5, 0)
        summary = grid.manager().summary()
        counts = (
            summary.num_tasks,
            summary.expected,
            summary.not_started,
            summary.running,
            summary.finished,
            summary.failed,
        )
        assert counts == (21, 42, 35, 1, 1, 5)
        assert str(summary.failed_indexes) == "3,17-20"
        assert str(summary.running_indexes) == "3"
        assert str(summary.missing_indexes) == "0-2,4-20"
        assert (summary.lowest.tag, summary.lowest.task_index) == ("a", 3)
        assert summary.fraction == pytest.approx(1.4 / 42)
        column = grid.manager().summary("a")
        assert (str(column.missing_indexes), column.failed, column.lowest.tag) == ("0-2,4-16", 5, "a")

    def test_a_summary_without_indexes_leaves_them_out(self, store: Store) -> None:
        grid = Grid.create(store, 3, ("a",))
        grid.write("a", 1, FAILED)
        summary = grid.manager().summary(indexes=False)
        assert (summary.failed_indexes, summary.running_indexes, summary.missing_indexes) == (None, None, None)
        assert (summary.failed, summary.not_started, summary.lowest.task_index) == (1, 2, 1)

    def test_cells_that_an_earlier_stage_kept_from_running_are_not_failures(self, store: Store) -> None:
        grid = Grid.create(store, 9, ("scan", "read", "save"))
        for row in (2, 4, 5):
            grid.run("scan", row, FAILED)
        grid.run("scan", 7)
        grid.run("read", 7, -42)
        grid.begin("read", 8)
        for indexes in (True, False):
            summary = grid.manager().summary(indexes=indexes)
            assert (summary.failed, summary.not_run) == (4, 7)
            assert (summary.not_started, summary.running, summary.finished) == (14, 1, 1)
        summary = grid.manager().summary()
        assert (str(summary.failed_indexes), str(summary.not_run_indexes)) == ("2,4-5,7", "2,4-5,7")
        found = {tag: grid.manager().summary(tag) for tag in ("scan", "read", "save")}
        assert {tag: (each.failed, each.not_run) for tag, each in found.items()} == {
            "scan": (3, 0),
            "read": (1, 3),
            "save": (0, 4),
        }
        assert [str(found["read"].failed_indexes), str(found["read"].not_run_indexes)] == ["7", "2,4-5"]
        assert [str(found["save"].failed_indexes), str(found["save"].not_run_indexes)] == ["", "2,4-5,7"]
        assert found["save"].lowest.status == -42
        assert grid.manager().get_state("read", 2).status == FAILED

    def test_without_indexes_the_rows_that_were_not_run_are_left_out(self, store: Store) -> None:
        grid = Grid.create(store, 2, ("scan", "save"))
        grid.run("scan", 1, FAILED)
        summary = grid.manager().summary(indexes=False)
        assert (summary.not_run, summary.not_run_indexes) == (1, None)

    def test_a_tie_between_a_failed_row_and_one_that_was_not_run_goes_to_the_lowest_row(self, store: Store) -> None:
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

    def test_the_fraction_counts_progress_where_it_is_known(self, store: Store) -> None:
        grid = Grid.create(store, 8, ("a",))
        payload = '{"progress":{"done":1,"total":4}}'
        writes = [
            (FINISHED, payload),
            (50, None),
            (50, payload),
            (5000, None),
            (5000, payload),
            (FAILED, payload),
            (0, payload),
        ]
        for row, (status, text) in enumerate(writes):
            grid.write("a", row, status, payload=text)
        assert grid.manager().summary().fraction == pytest.approx((1 + 0.5 + 0.25 + 0 + 0.25) / 8)

    @pytest.mark.parametrize("progress", ['{"done":0.5,"total":1e308}', '{"done":0.5,"total":1' + "0" * 400 + "}"])
    def test_odd_progress_does_no_harm(self, store: Store, progress: str) -> None:
        grid = Grid.create(store, 1, ("a",))
        grid.write("a", 0, 50, payload=f'{{"progress":{progress}}}')
        assert 0.0 <= grid.manager().summary().fraction <= 1.0
        assert grid.state("a", 0).fraction is not None

    def test_a_survey_is_of_one_moment_and_names_the_expected_columns(self, store: Store) -> None:
        grid = Grid.create(store, 4, HOLES)
        grid.run("a", 0)
        grid.write("z", 0, 5)
        job, columns = store.column_summaries(grid.ref)
        assert job == grid.job
        assert [(column.tag, column.expected) for column in columns] == [("a", 4), ("b", 2), ("c", 2)]
        assert columns[0].tally == Tally(finished=1, succeeded=1, ended=1)
        assert [column.failed for column in columns] == [None] * 3
        _, (column,) = store.column_summaries(grid.ref, "z", indexes=True)
        assert (column.expected, str(column.running), str(column.missing)) == (4, "0", "1-3")

    @pytest.mark.parametrize("tags", PLANS.values(), ids=PLANS)
    @pytest.mark.parametrize("seed", range(3))
    def test_aggregates_and_tallies_equal_a_recount_after_any_operations(
        self, store: Store, tags: PlanSpec | None, seed: int
    ) -> None:
        dice = random.Random(seed)
        grid = Grid.create(store, 4, tags)
        seen: set[str] = set()
        for step in range(240):
            tag, row = dice.choice("abcz"), dice.randrange(4)
            before = grid.cell(tag, row).version
            _do_anything(grid, dice, tag, row)
            seen |= {tag} if grid.cell(tag, row).version > before else set()
            if step == 200 and seed == 2:
                grid.cancel()
            if step % 12 == 0 or step > 230:
                _recount(grid, seen)


def _do_anything(grid: Grid, dice: random.Random, tag: str, row: int) -> None:
    kind = dice.randrange(4)
    open_attempt = grid.cell(tag, row).open
    if kind == 0:
        grid.begin(tag, row, delivery=Delivery(0, dice.randrange(3)), owner="w")
    elif kind == 1 and open_attempt:
        grid.end(tag, row, dice.choice(STATUSES))
    elif grid.job.cancelled is None:
        fields = {"keep_payload": True} if kind == 2 else {"payload": dice.choice(PAYLOADS)}
        grid.write(tag, row, dice.choice(STATUSES), **fields)


def _recount(grid: Grid, seen: set[str]) -> None:
    cells, states = naive.read_grid(grid, "abcz")
    naive.check_grid(grid, naive.expected(grid.job, seen), cells, states)
