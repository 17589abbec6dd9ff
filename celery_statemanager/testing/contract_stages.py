"""Stages of a row: a final failure blocks the later stages, a new attempt unblocks them (rule R13)."""

from __future__ import annotations

import pytest

from celery_statemanager.failures import cause_of
from celery_statemanager.models import Scope, Status
from celery_statemanager.records import Delivery
from celery_statemanager.stores.base import Store
from celery_statemanager.testing.kit import FAILED, FINISHED, Grid, read_until, smoke, statuses

STAGES = ("scan", "read", "save")


class StageContract:
    """Tests of the stages of a row."""

    @pytest.mark.parametrize("status", [FAILED, -42, Status.REVOKED, Status.LOST, Status.TIMED_OUT])
    @smoke
    def test_a_final_failure_blocks_later_stages_in_the_same_step(self, store: Store, status: int) -> None:
        grid = Grid.create(store, 2, STAGES)
        grid.run("scan", 0)
        end = grid.run("read", 0, status, message="no such file").cell
        blocked = grid.cell("save", 0)
        assert (blocked.status, blocked.version, blocked.attempt, blocked.final) == (status, 1, 0, True)
        assert blocked.message == "not run: stage 'read' failed: no such file"
        assert (blocked.blocked_by, blocked.timestamp) == ("read", end.timestamp)
        assert grid.state("save", 0).message == blocked.message
        assert grid.cell("scan", 0).status == FINISHED
        assert statuses(grid.states(row=1)) == {}

    def test_a_failure_without_a_message_shows_its_status(self, store: Store) -> None:
        grid = Grid.create(store, 2, STAGES)
        grid.run("scan", 0, -42)
        assert {grid.state(tag, 0).message for tag in STAGES[1:]} == {"not run: stage 'scan' failed: -42"}

    @pytest.mark.parametrize("message", ["no such page", None, "it's \"odd\": 'x'\nline two"])
    def test_the_message_of_a_blocked_cell_names_the_stage_and_its_message(
        self, store: Store, message: str | None
    ) -> None:
        stage = 'it\'s "odd" \\ ü'
        grid = Grid.create(store, 1, (stage, "save"))
        grid.run(stage, 0, -42, message=message)
        assert cause_of(grid.state("save", 0)) == (*cause_of(grid.state(stage, 0))[:2], True)

    def test_blocking_needs_a_final_negative_cell_and_block_later_stages(self, store: Store) -> None:
        grid = Grid.create(store, 4, STAGES)
        grid.begin("scan", 0)
        grid.write("scan", 0, FAILED, attempt=1, block_later_stages=True)
        grid.run("scan", 1, FAILED, block_later_stages=False)
        grid.run("scan", 2, FINISHED, block_later_stages=True)
        grid.begin("scan", 3)
        grid.write("scan", 3, 5, attempt=1, ends_attempt=True, block_later_stages=True)
        assert {state.tag for state in grid.states()} == {"scan"}

    def test_blocked_stages_get_the_kept_status_of_the_application(self, store: Store) -> None:
        grid = Grid.create(store, 1, STAGES)
        grid.begin("scan", 0)
        grid.write("scan", 0, -42, attempt=1, message="mine")
        grid.end("scan", 0, FINISHED, block_later_stages=True, keep_app_status=True)
        assert (grid.state("save", 0).status, grid.state("read", 0).message) == (
            -42,
            "not run: stage 'scan' failed: mine",
        )

    def test_a_failure_without_an_attempt_blocks_later_stages(self, store: Store) -> None:
        grid = Grid.create(store, 1, STAGES)
        grid.write("scan", 0, int(Status.EXPIRED), block_later_stages=True)
        assert [grid.state(tag, 0).status for tag in STAGES] == [Status.EXPIRED] * 3

    def test_only_cells_that_never_began_are_blocked(self, store: Store) -> None:
        grid = Grid.create(store, 1, ("scan", "read", "save", "done"))
        grid.begin("read", 0)
        grid.write("save", 0, 50, message="busy")
        grid.write("done", 0, 0, payload='{"n":1}')
        grid.run("scan", 0, FAILED)
        assert statuses(grid.states()) == {("scan", 0): -1, ("read", 0): 1, ("save", 0): 50, ("done", 0): -1}
        assert grid.cell("done", 0).version == 2
        assert grid.cell("read", 0).version == 1

    def test_a_stage_that_begins_again_unblocks_later_stages(self, store: Store) -> None:
        grid = Grid.create(store, 2, STAGES)
        grid.write("save", 0, 0, payload='{"n":1}')
        grid.run("scan", 0, FAILED)
        grid.begin("scan", 0, delivery=Delivery(0, 0, 1))
        freed = grid.cell("save", 0)
        assert (freed.status, freed.message, freed.version, freed.waiting) == (0, None, 3, True)
        assert freed.payload == '{"n":1}'
        assert freed.blocked_by is None
        assert grid.cell("read", 0).version == 2
        assert grid.lowest(row=0).tag == "read"
        grid.end("scan", 0)
        assert grid.run("read", 0).cell.version == 4

    def test_a_cell_counts_as_not_run_only_while_it_is_blocked(self, store: Store) -> None:
        grid = Grid.create(store, 3, STAGES)

        def counted() -> tuple[int, int, str, str]:
            with_rows, bare = grid.manager().summary(), grid.manager().summary(indexes=False)
            assert (with_rows.failed, with_rows.not_run) == (bare.failed, bare.not_run)
            return bare.failed, bare.not_run, str(with_rows.failed_indexes), str(with_rows.not_run_indexes)

        grid.run("scan", 0, FAILED)
        grid.run("scan", 1, FAILED)
        assert counted() == (2, 4, "0-1", "0-1")
        grid.begin("scan", 0, delivery=Delivery(0, 0, 1))
        assert counted() == (1, 2, "1", "1")
        grid.write("read", 1, -9, message="of its own")
        assert counted() == (2, 1, "1", "1")
        grid.begin("save", 1)
        assert counted() == (2, 0, "1", "")
        grid.end("scan", 0, FAILED)
        assert counted() == (3, 2, "0-1", "0")

    def test_cells_blocked_by_a_cancelled_stage_count_as_not_run(self, store: Store) -> None:
        grid = Grid.create(store, 3, STAGES)
        grid.begin("scan", 0)
        grid.cancel("why")
        grid.end("scan", 0, int(Status.CANCELLED))
        for indexes in (True, False):
            summary = grid.manager().summary(indexes=indexes)
            assert (summary.failed, summary.not_run, summary.not_started) == (7, 2, 0)
        assert [str(grid.manager().summary(tag).failed_indexes) for tag in STAGES] == ["0-2", "1-2", "1-2"]
        assert [str(grid.manager().summary(tag).not_run_indexes) for tag in STAGES] == ["", "0", "0"]

    def test_a_refused_begin_unblocks_nothing(self, store: Store) -> None:
        grid = Grid.create(store, 2, STAGES)
        grid.begin("scan", 0, delivery=Delivery(0, 0, 1))
        grid.end("scan", 0, FAILED)
        grid.begin("scan", 0)
        assert grid.state("save", 0).status == FAILED

    def test_a_stage_unblocks_only_the_cells_that_it_blocked(self, store: Store) -> None:
        grid = Grid.create(store, 2, STAGES)
        grid.run("read", 0, -5)
        grid.run("scan", 0, -6)
        assert grid.cell("save", 0).status == -5
        grid.begin("scan", 0)
        assert (grid.cell("save", 0).status, grid.cell("read", 0).status) == (-5, -5)
        grid.begin("read", 0)
        assert grid.cell("save", 0).status == 0

    def test_a_blocked_cell_that_was_written_since_is_not_unblocked(self, store: Store) -> None:
        grid = Grid.create(store, 2, STAGES)
        grid.run("scan", 0, FAILED)
        grid.write("read", 0, -9, message="mine")
        grid.begin("save", 0)
        grid.begin("scan", 0)
        assert (grid.state("read", 0).status, grid.state("read", 0).message) == (-9, "mine")
        assert (grid.state("save", 0).status, grid.cell("save", 0).version) == (1, 2)

    def test_a_blocked_stage_may_begin(self, store: Store) -> None:
        grid = Grid.create(store, 2, STAGES)
        grid.run("scan", 0, FAILED)
        reply = grid.begin("read", 0)
        assert (reply.cell.status, reply.cell.message, reply.cell.blocked_by) == (1, None, None)

    def test_each_row_is_blocked_along_its_own_stages(self, store: Store) -> None:
        grid = Grid.create(store, 3, {"scan": [0, 1], "read": [0, 2], "save": [0, 1, 2]})
        grid.run("scan", 1, FAILED)
        grid.run("read", 2, -5)
        expected = {("scan", 1): -1, ("save", 1): -1, ("read", 2): -5, ("save", 2): -5}
        assert statuses(grid.states()) == expected

    def test_unplanned_stages_block_nothing(self, store: Store) -> None:
        free = Grid.create(store, 2, job_id="free")
        free.write("save", 0, 0)
        free.run("scan", 0, FAILED)
        planned = Grid.create(store, 2, STAGES)
        planned.run("other", 0, FAILED)
        assert statuses(free.states()) == {("scan", 0): -1, ("save", 0): 0}
        assert statuses(planned.states()) == {("other", 0): -1}

    def test_a_watch_reports_blocked_and_unblocked_cells(self, store: Store) -> None:
        grid = Grid.create(store, 1, STAGES)
        watch = store.watch(grid.ref, Scope(tag="save"))
        grid.run("scan", 0, FAILED)
        batch = read_until(watch, lambda batch: bool(batch.states))
        assert [(state.version, state.status) for state in batch.states] == [(1, FAILED)]
        assert grid.decided == {"failure", "settled"}
        watch.close()
        rerun = Grid.create(store, 2, STAGES, job_id="rerun")
        rerun.run("scan", 0, FAILED)
        watch = store.watch(rerun.ref, Scope(tag="save"))
        rerun.begin("scan", 0)
        batch = read_until(watch, lambda batch: bool(batch.states))
        assert [(state.version, state.status, state.message) for state in batch.states] == [(2, 0, None)]
        watch.close()

    def test_each_blocked_cell_has_an_event_id(self, store: Store) -> None:
        grid = Grid.create(store, 1, STAGES)
        grid.run("scan", 0, FAILED, event_id="end")
        assert grid.state("save", 0).event_id
        assert grid.state("read", 0).event_id
