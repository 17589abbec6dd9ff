"""The contract of the mark that an attempt has stalled (rule R23)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from celery_statemanager.errors import AttemptSuperseded
from celery_statemanager.models import Scope, Status
from celery_statemanager.records import Stall, Write, WriteReply
from celery_statemanager.stores.base import Store
from celery_statemanager.testing.kit import FAILED, FINISHED, Grid, read_until, smoke

AFTER = 120_000_000
PLACE = "resize.py:88 read_tile"


def begin(grid: Grid, tag: str = "a", row: int = 0, owner: str | None = "w") -> None:
    grid.begin(tag, row, owner=owner, stall_after=AFTER)


def mark(grid: Grid, tag: str = "a", row: int = 0, **fields: Any) -> WriteReply:
    """Mark an attempt as stalled since its last write."""
    cell = grid.cell(tag, row)
    given = {"attempt": cell.attempt, "if_version": cell.version, "since": cell.timestamp, **fields}
    return grid.store.write(grid.ref, Write.stalled(tag, row, **given))


class StallContract:
    """Marks of attempts that have not moved. Every kind of other write removes them."""

    @smoke
    def test_a_mark_changes_only_the_version_the_time_and_the_stall(self, store: Store) -> None:
        """R23."""
        grid = Grid.create(store)
        begin(grid)
        grid.write("a", 0, 40, message="page 4", payload='{"n":1}', attempt=1)
        before = grid.cell("a", 0)
        assert before.stall == Stall(AFTER)
        reply = mark(grid, stands_in=PLACE)
        cell = grid.cell("a", 0)
        assert (reply.changed, reply.cell, reply.decided) == (True, cell, ())
        assert cell.stall == Stall(AFTER, before.timestamp, PLACE)
        assert (cell.version, cell.timestamp >= before.timestamp) == (before.version + 1, True)
        kept = ("status", "message", "payload", "attempt", "open", "owner", "began_at", "delivery", "losses")
        assert [getattr(cell, name) for name in kept] == [getattr(before, name) for name in kept]
        state = grid.state("a", 0)
        assert (state.stalled, state.message) == (True, f"page 4; stands in {PLACE}")
        assert grid.states() == [state]

    @smoke
    def test_stalled_attempts_are_counted_and_their_rows_are_found(self, store: Store) -> None:
        """R23, R6."""
        grid = Grid.create(store, 5, ("a", "b"))
        for row in range(4):
            begin(grid, "a", row)
        grid.write("a", 1, 40, attempt=1)
        grid.write("a", 2, -9, attempt=1)
        for row in (1, 2, 3):
            mark(grid, "a", row)
        begin(grid, "b", 0)
        mark(grid, "b", 0)
        summary = grid.manager().summary()
        assert (summary.stalled, str(summary.stalled_indexes)) == (4, "0-3")
        assert (summary.running, summary.failed, summary.not_started) == (4, 1, 5)
        bare = grid.manager().summary("a", indexes=False)
        assert (bare.stalled, bare.stalled_indexes) == (3, None)
        grid.write("a", 1, 41, attempt=1)
        grid.end("a", 2, FAILED)
        assert str(grid.manager().summary("a").stalled_indexes) == "3"
        grid.cancel()
        assert (grid.manager().summary().stalled, grid.decided) == (2, {"failure"})

    @smoke
    @pytest.mark.parametrize(
        ("next_write", "after"),
        [
            (lambda grid: grid.write("a", 0, 50, attempt=1), AFTER),
            (lambda grid: grid.end("a", 0, FINISHED), 0),
            (lambda grid: grid.end("a", 0, FAILED), 0),
            (lambda grid: grid.begin("a", 0, owner="v", supersedes=1), 0),
            (lambda grid: grid.store.write(grid.ref, Write.lost("a", 0, "lost", attempt=1)), 0),
            (lambda grid: grid.store.write(grid.ref, Write.returned("a", 0, "again", attempt=1)), 0),
            (lambda grid: grid.store.write(grid.ref, Write.sent_back("a", 0, "b", attempt=1, is_open=True)), 0),
        ],
        ids=("write", "finish", "failure", "begin", "lost", "returned", "sent back"),
    )
    def test_any_other_write_removes_the_mark(
        self, store: Store, next_write: Callable[[Grid], object], after: int
    ) -> None:
        """R23."""
        grid = Grid.create(store, 1, ("a",))
        begin(grid)
        mark(grid, stands_in=PLACE)
        next_write(grid)
        assert grid.cell("a", 0).stall == Stall(after)
        assert not grid.state("a", 0).stalled
        assert PLACE not in (grid.state("a", 0).message or "")
        summary = grid.manager().summary()
        assert (summary.stalled, str(summary.stalled_indexes)) == (0, "")

    @smoke
    def test_a_repeated_mark_is_no_write(self, store: Store) -> None:
        """R23. The place of a body may be added to a mark that has none."""
        grid = Grid.create(store)
        begin(grid)
        began = grid.cell("a", 0)
        mark(grid)
        assert not mark(grid, if_version=began.version).changed
        assert mark(grid, if_version=began.version, stands_in=PLACE).changed
        cell = grid.cell("a", 0)
        assert (cell.version, cell.stall) == (3, Stall(AFTER, began.timestamp, PLACE))
        for place in (None, "other.py:1 f"):
            assert not mark(grid, stands_in=place).changed
        assert grid.cell("a", 0) == cell

    def test_an_attempt_that_has_moved_is_not_marked(self, store: Store) -> None:
        """R23."""
        grid = Grid.create(store, 5)
        begin(grid)
        grid.write("a", 0, 40, attempt=1)
        begin(grid, row=1)
        grid.end("a", 1)
        begin(grid, row=2, owner=None)
        begin(grid, row=3)
        begin(grid, row=4)
        grid.begin("a", 4, owner="v", supersedes=1)
        moved: dict[int, dict[str, Any]] = {0: {"if_version": 1}, 1: {}, 2: {}, 3: {"attempt": 2}, 4: {"attempt": 1}}
        for row, fields in moved.items():
            before = grid.cell("a", row)
            with pytest.raises(AttemptSuperseded):
                mark(grid, row=row, **fields)
            assert grid.cell("a", row) == before
        assert grid.manager().summary().stalled == 0

    def test_watches_deliver_marks(self, store: Store) -> None:
        """R23, R7."""
        grid = Grid.create(store)
        begin(grid)
        watch = grid.store.watch(grid.ref, Scope())
        mark(grid, stands_in=PLACE)
        (state,) = read_until(watch, lambda batch: bool(batch.states)).states
        assert (state.stalled, state.version, state.status) == (True, 2, Status.STARTED)
        grid.write("a", 0, 40, attempt=1)
        read_until(watch, lambda batch: bool(batch.states) and not batch.states[0].stalled)
        watch.close()

    def test_attempts_of_a_cancelled_job_are_marked(self, store: Store) -> None:
        """R23, R17."""
        grid = Grid.create(store, 1, ("a",))
        begin(grid)
        grid.cancel()
        mark(grid)
        assert (grid.state("a", 0).stalled, grid.decided) == (True, set())

    def test_the_attempt_of_a_callback_is_marked(self, store: Store) -> None:
        """R23."""
        grid = Grid.create(store, 1, ("a",), settled="{}")
        grid.begin("settled", -1, owner="w", stall_after=AFTER)
        mark(grid, "settled", -1)
        assert grid.cell("settled", -1).stall.since
        assert grid.manager().summary().stalled == 0
