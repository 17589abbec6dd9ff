"""What rows keep of their newest finished stages: values for next stages, and results (rules R19, R21)."""

from __future__ import annotations

import pytest

from celery_statemanager.errors import JobNotFound
from celery_statemanager.indexset import IndexSet
from celery_statemanager.limits import MAX_VALUE_BYTES
from celery_statemanager.records import CALLBACK_ROW, Write
from celery_statemanager.stores.capabilities import Outbox
from celery_statemanager.testing.contract_outbox import rows
from celery_statemanager.testing.contract_rerun import end_reset, rerun, reset
from celery_statemanager.testing.contract_returned import published
from celery_statemanager.testing.kit import FAILED, FINISHED, Grid, purge, smoke

SIZES = (1, 31, 256, 257, 5_000)
"""Lengths of values that a store may keep in different places."""


def listed(grid: Grid, of: str = "") -> dict[int, str]:
    """Return what rows keep. Check that each row appears once, in row order."""
    store = grid.store
    assert isinstance(store, Outbox)
    found = list(store.list_values(grid.ref, rows(of) if of else IndexSet(range(grid.job.num_tasks))))
    assert [row for row, _ in found] == sorted({row for row, _ in found})
    return dict(found)


class ValueContract:
    """Tests of the values of rows."""

    @smoke
    def test_values_are_listed_in_row_order(self, store: Outbox) -> None:
        grid = published(store, 40)
        expected = {}
        for row in (3, 39, 0, 7, 8, 20, 21, 22):
            expected[row] = f'"{row}"' + "x" * SIZES[row % len(SIZES)]
            grid.run("a", row, value=expected[row])
        assert listed(grid) == expected
        assert listed(grid, "1-8,21,30") == {row: expected[row] for row in (3, 7, 8, 21)}
        assert {row: store.get_value(grid.ref, row) for row in expected} == expected
        assert list(store.list_values(grid.ref, IndexSet())) == []

    def test_many_values_are_read_in_pages(self, store: Outbox) -> None:
        grid = published(store, 60)
        expected = {row: f"{row:05}" * (20_000 if row % 20 == 7 else row) for row in range(60) if row % 5}
        for row, text in expected.items():
            grid.write("a", row, FINISHED, value=text)
        assert listed(grid) == expected
        assert listed(grid, "7-9,27,50") == {row: expected[row] for row in (7, 8, 9, 27)}

    @pytest.mark.parametrize("first", SIZES)
    def test_a_value_of_any_size_replaces_one_of_any_other(self, store: Outbox, first: int) -> None:
        grid = published(store, 5)
        grid.write("a", 1, FINISHED, value="neighbour")
        for size in (*SIZES, first):
            grid.write("a", 2, FINISHED, value="x" * size)
            assert listed(grid) == {1: "neighbour", 2: "x" * size}
            assert store.get_value(grid.ref, 2) == "x" * size
        grid.write("a", 2, FINISHED, value="")
        assert listed(grid) == {1: "neighbour"}
        assert store.get_value(grid.ref, 2) is None

    def test_a_value_may_be_any_text(self, store: Outbox) -> None:
        grid = published(store, 3)
        texts = ("ß \x00 \U0001f600", '"' + "é" * 1_000 + '"')
        for row, text in enumerate(texts):
            grid.write("a", row, FINISHED, value=text)
        assert tuple(listed(grid).values()) == texts

    def test_the_largest_value_is_kept(self, store: Outbox) -> None:
        grid, text = published(store, 2), "é" * (MAX_VALUE_BYTES // 2)
        grid.run("a", 1, value=text)
        assert store.get_value(grid.ref, 1) == text
        assert listed(grid) == {1: text}

    def test_a_value_is_replaced_and_goes_with_its_job(self, store: Outbox) -> None:
        grid, large = published(store, 2, ("a", "b", "c")), '"' + "x" * 300_000 + '"'
        grid.begin("a", 0)
        grid.end("a", 0, value=large)
        assert store.get_value(grid.ref, 0) == large
        grid.begin("b", 0)
        grid.write("b", 0, 50, attempt=1)
        assert store.get_value(grid.ref, 0) == large
        grid.end("b", 0, value="[1,2]")
        assert store.get_value(grid.ref, 0) == "[1,2]"
        ref = grid.ref
        grid.delete()
        assert store.get_value(ref, 0) is None

    def test_only_a_stage_that_succeeds_replaces_the_value(self, store: Outbox) -> None:
        grid = published(store, 2, ("a", "b"))
        grid.begin("a", 0)
        grid.end("a", 0, value="1")
        grid.begin("b", 0)
        grid.write("b", 0, FAILED, attempt=1)
        assert grid.end("b", 0, keep_app_status=True, value="2").cell.status == FAILED
        assert store.get_value(grid.ref, 0) == "1"

    @smoke
    def test_no_reader_of_states_sees_a_value(self, store: Outbox) -> None:
        grid = published(store, 2)
        manager = grid.manager()
        with manager.subscribe() as events:
            grid.run("a", 0, value='"secret"')
            seen = [*manager.list_states(), manager.get_state("a", 0), manager.summary()]
            while (event := events.get(0.0)) is not None:
                seen.append(event.state)
        assert "secret" not in repr(seen)
        assert "secret" not in repr(grid.cell("a", 0))

    def test_a_job_without_messages_keeps_values_too(self, store: Outbox) -> None:
        grid = Grid.create(store, 2, ("a",))
        grid.run("a", 1, value="1")
        assert listed(grid) == {1: "1"}

    def test_a_repeated_write_does_not_replace_the_value(self, store: Outbox) -> None:
        grid = published(store)
        for value in ("1", "2"):
            grid.write("a", 0, FINISHED, value=value, event_id="0" * 32)
        assert listed(grid) == {0: "1"}

    @smoke
    def test_a_late_end_keeps_its_value(self, store: Outbox) -> None:
        grid = published(store, 2)
        grid.begin("a", 0, owner="w")
        store.write(grid.ref, Write.lost("a", 0, "lost", attempt=1))
        late = Write.ending("a", 0, FINISHED, attempt=1)
        late.value = '"late"'
        assert store.write(grid.ref, late).cell.succeeded
        assert listed(grid) == {0: '"late"'}

    def test_a_row_that_is_rerun_gets_the_value_of_its_new_end(self, store: Outbox) -> None:
        grid = published(store, 3, ("a", "b"))
        grid.run("a", 0, value="1")
        grid.run("b", 0, FAILED, value="never")
        grid.run("a", 1, FAILED, value="never")
        assert listed(grid) == {0: "1"}
        rerun(grid, "0-1")
        assert reset(grid, "b", 0)
        assert reset(grid, "a", 1)
        end_reset(grid)
        assert listed(grid) == {0: "1"}, "the stage that runs again takes it"
        grid.run("b", 0, value="2")
        grid.run("a", 1, value="3")
        assert listed(grid) == {0: "2", 1: "3"}

    def test_the_run_of_a_callback_keeps_a_value_apart_from_the_rows(self, store: Outbox) -> None:
        grid = published(store, 9)
        grid.run("a", 7, value="7")
        for size in SIZES:
            grid.write("success", CALLBACK_ROW, FINISHED, value="b" * size)
            assert store.get_value(grid.ref, CALLBACK_ROW) == "b" * size
            assert listed(grid) == {7: "7"}

    @smoke
    def test_the_values_of_a_deleted_job_are_not_listed(self, store: Outbox) -> None:
        def filled() -> Grid:
            grid = published(store, 30)
            for row in range(30):
                grid.write("a", row, FINISHED, value="x" * SIZES[row % len(SIZES)])
            return grid

        grid = filled()
        store.delete_job(grid.job)
        successor = filled()
        with pytest.raises(JobNotFound):
            store.list_values(grid.ref, rows("0-9"))
        purge(store, 10)
        assert purge(store) == 0
        assert len(listed(successor)) == 30
        assert [store.get_value(grid.ref, row) for row in range(30)] == [None] * 30
