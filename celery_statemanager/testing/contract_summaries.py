"""Summaries and column summaries (rule R5)."""

from __future__ import annotations

import pytest

from celery_statemanager.records import Tally
from celery_statemanager.stores.base import Store
from celery_statemanager.testing.kit import FAILED, FINISHED, Grid, smoke


class SummaryContract:
    """Tests of summaries."""

    @smoke
    def test_a_summary_counts_cells_and_lists_rows(self, store: Store) -> None:
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

    def test_a_summary_without_indexes_has_no_row_sets(self, store: Store) -> None:
        grid = Grid.create(store, 3, ("a",))
        grid.write("a", 1, FAILED)
        summary = grid.manager().summary(indexes=False)
        assert (summary.failed_indexes, summary.running_indexes, summary.missing_indexes) == (None, None, None)
        assert (summary.failed, summary.not_started, summary.lowest.task_index) == (1, 2, 1)

    def test_cells_blocked_by_a_failed_stage_count_as_not_run(self, store: Store) -> None:
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

    def test_a_summary_without_indexes_counts_cells_that_were_not_run(self, store: Store) -> None:
        grid = Grid.create(store, 2, ("scan", "save"))
        grid.run("scan", 1, FAILED)
        summary = grid.manager().summary(indexes=False)
        assert (summary.not_run, summary.not_run_indexes) == (1, None)

    def test_the_fraction_includes_known_progress(self, store: Store) -> None:
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
    def test_extreme_progress_values_keep_the_fraction_valid(self, store: Store, progress: str) -> None:
        grid = Grid.create(store, 1, ("a",))
        grid.write("a", 0, 50, payload=f'{{"progress":{progress}}}')
        assert 0.0 <= grid.manager().summary().fraction <= 1.0
        assert grid.state("a", 0).fraction is not None

    def test_column_summaries_contain_the_expected_columns_of_one_moment(self, store: Store) -> None:
        grid = Grid.create(store, 4, {"a": [0, 1, 2, 3], "b": [1, 3], "c": [0, 3]})
        grid.run("a", 0)
        grid.write("z", 0, 5)
        job, columns = store.column_summaries(grid.ref)
        assert job == grid.job
        assert [(column.tag, column.expected) for column in columns] == [("a", 4), ("b", 2), ("c", 2)]
        assert columns[0].tally == Tally(finished=1, succeeded=1, ended=1)
        assert [column.failed for column in columns] == [None] * 3
        _, (column,) = store.column_summaries(grid.ref, "z", indexes=True)
        assert (column.expected, str(column.running), str(column.missing)) == (4, "0", "1-3")
