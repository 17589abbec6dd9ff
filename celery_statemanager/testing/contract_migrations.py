"""Migrations: finding and rewriting outdated cells, and adopting jobs of other programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from celery_statemanager.errors import JobNotFound
from celery_statemanager.models import SCHEMA_VERSION, Scope
from celery_statemanager.records import CALLBACK_ROW, Cell, StoredCell, new_incarnation, new_job
from celery_statemanager.stores.capabilities import Migratable
from celery_statemanager.subscription import Subscription
from celery_statemanager.testing.contract_fixtures import ContractFixtures
from celery_statemanager.testing.kit import FINISHED, Grid, every_job, smoke

LATER = SCHEMA_VERSION + 1


def outdated(store: Migratable, grid: Grid, below: int = LATER) -> list[StoredCell]:
    found = store.outdated_cells(grid.ref, below)
    return sorted(found, key=lambda each: (each.tag, each.task_index))


def later(found: list[StoredCell], change: Callable[[Cell], Cell] = lambda cell: cell) -> list[StoredCell]:
    return [replace(each, cell=replace(change(each.cell), schema_version=LATER)) for each in found]


def foreign(store: Migratable, num_tasks: int = 3) -> Grid:
    """Create a job without an incarnation, as another program does."""
    return Grid(store, store.create_job(replace(new_job("job", num_tasks), incarnation="")).ref)


def busy(store: Migratable) -> Grid:
    grid = Grid.create(store, 3, ("a", "b"), success="call")
    grid.begin("a", 0, owner="w1", kept="m")
    grid.write("a", 0, 40, attempt=1, message="page 4", payload='{"progress":{"done":1,"total":4},"rows":[[1]]}')
    grid.run("a", 1, -1)
    grid.write("c", 2, 5)
    return grid


class MigratableContract(ContractFixtures):
    """Tests of cells and jobs of an earlier schema."""

    def test_outdated_cells_include_those_of_callbacks(self, store: Migratable) -> None:
        grid = busy(store)
        grid.begin("success", CALLBACK_ROW)
        assert outdated(store, grid, SCHEMA_VERSION) == []
        found = {(each.tag, each.task_index): each.cell for each in outdated(store, grid)}
        assert found == {(tag, row): grid.cell(tag, row) for tag, row in found}
        assert set(found) == {("a", 0), ("a", 1), ("b", 1), ("c", 2), ("success", CALLBACK_ROW)}

    def test_rewriting_cells_keeps_their_content(self, store: Migratable) -> None:
        grid = busy(store)
        job, states, cells = grid.job, grid.states(), {(e.tag, e.task_index): e.cell for e in outdated(store, grid)}
        before = store.column_summaries(grid.ref, indexes=True)
        assert store.rewrite_cells(grid.ref, later(outdated(store, grid))) == 4
        assert outdated(store, grid) == []
        for place, cell in cells.items():
            assert grid.cell(*place) == replace(cell, schema_version=LATER)
        assert grid.states() == [replace(state, schema_version=LATER) for state in states]
        assert grid.job == job
        assert [replace(each, lowest=None) for each in store.column_summaries(grid.ref, indexes=True)[1]] == [
            replace(each, lowest=None) for each in before[1]
        ]

    def test_a_cell_of_schema_1_is_read_and_written_as_such(self, store: Migratable, other_store: Migratable) -> None:
        grid = busy(store)
        first = [replace(each, cell=replace(each.cell, schema_version=1)) for each in outdated(store, grid)]
        assert store.rewrite_cells(grid.ref, first) == 4
        grid.update(lambda job: replace(job, schema_version=1))
        elsewhere = grid.seen_by(other_store)
        for each in first:
            assert elsewhere.cell(each.tag, each.task_index) == each.cell
        assert {state.schema_version for state in elsewhere.states()} == {1}
        assert grid.end("a", 0).cell.schema_version == 1
        assert grid.begin("a", 1, takes_over=True).cell.schema_version == 1
        assert grid.run("a", 2).cell.schema_version == SCHEMA_VERSION
        found = outdated(other_store, elsewhere, SCHEMA_VERSION)
        assert [(each.tag, each.task_index) for each in found] == [("a", 0), ("a", 1), ("b", 1), ("c", 2)]
        assert (elsewhere.job.schema, elsewhere.lowest("a").schema_version) == (1, 1)

    def test_callback_runs_and_unplanned_cells_are_rewritten_but_not_counted(self, store: Migratable) -> None:
        grid = Grid.create(store, 2, {"a": [0], "b": [1]}, success="call")
        grid.begin("success", CALLBACK_ROW)
        grid.write("a", 1, 5)
        job, columns = store.column_summaries(grid.ref)
        assert store.rewrite_cells(grid.ref, later(outdated(store, grid))) == 2
        assert outdated(store, grid) == []
        assert grid.cell("success", CALLBACK_ROW).schema_version == LATER
        assert store.column_summaries(grid.ref) == (job, columns)

    def test_a_rewritten_cell_accepts_writes(self, store: Migratable) -> None:
        grid = busy(store)
        store.rewrite_cells(grid.ref, later(outdated(store, grid)))
        assert grid.end("a", 0, keep_payload=True).cell.version == 3
        assert json.loads(grid.cell("a", 0).payload or "") == {"progress": {"done": 4, "total": 4}, "rows": [[1]]}
        assert grid.begin("a", 1, takes_over=True).cell.attempt == 2
        assert grid.cell("b", 1).status == 0
        assert grid.cell("a", 0).schema_version == LATER

    def test_rewriting_cells_sends_no_event_to_subscriptions(self, store: Migratable) -> None:
        grid = busy(store)
        with Subscription(store, grid.ref, Scope()) as events:
            while events.get(0.0) is not None:
                pass
            store.rewrite_cells(grid.ref, later(outdated(store, grid)))
            version = grid.write("c", 2, 6).cell.version
            event = events.get(20.0)
            assert event is not None
            assert (event.state.tag, event.state.version) == ("c", version)

    def test_rewriting_a_payload_updates_the_tallies(self, store: Migratable) -> None:
        grid = Grid.create(store, 1, ("a",))
        grid.write("a", 0, 40, payload='{"seen":[3,4]}')
        progress = '{"progress":{"done":3,"total":4}}'
        rewritten = later(outdated(store, grid), lambda cell: replace(cell, payload=progress))
        assert store.rewrite_cells(grid.ref, rewritten) == 1
        assert (grid.cell("a", 0).payload, grid.manager().summary().fraction) == (progress, 0.75)
        bare = later(outdated(store, grid, LATER + 1), lambda cell: replace(cell, payload=None))
        assert store.rewrite_cells(grid.ref, [replace(e, cell=replace(e.cell, schema_version=9)) for e in bare]) == 1
        assert (grid.cell("a", 0).payload, grid.manager().summary().fraction) == (None, 0.4)

    def test_a_rewrite_may_change_every_mutable_field(self, store: Migratable) -> None:
        grid = busy(store)
        (found,) = [each for each in outdated(store, grid) if (each.tag, each.task_index) == ("b", 1)]
        assert found.cell.blocked_by == "a"
        new = replace(found.cell, message="wörds", event_id="e", losses=2, kept="k", blocked_by="x", began_at=7)
        assert store.rewrite_cells(grid.ref, later([replace(found, cell=new)])) == 1
        assert grid.cell("b", 1) == replace(new, schema_version=LATER)
        assert grid.state("b", 1).message == "wörds"

    def test_rewriting_blocked_by_moves_a_cell_between_failed_and_not_run(self, store: Migratable) -> None:
        grid = Grid.create(store, 2, ("a", "b"))
        grid.run("a", 1, -5)
        grid.write("b", 0, -5)

        def counted() -> tuple[int, int, str, str]:
            with_rows, bare = grid.manager().summary("b"), grid.manager().summary("b", indexes=False)
            assert (with_rows.failed, with_rows.not_run) == (bare.failed, bare.not_run)
            assert grid.lowest("b").task_index == 0
            return bare.failed, bare.not_run, str(with_rows.failed_indexes), str(with_rows.not_run_indexes)

        def rewritten(row: int, schema: int, blocked_by: str | None) -> None:
            (found,) = [each for each in outdated(store, grid, schema) if (each.tag, each.task_index) == ("b", row)]
            new = replace(found.cell, schema_version=schema, blocked_by=blocked_by)
            assert store.rewrite_cells(grid.ref, [replace(found, cell=new)]) == 1

        assert counted() == (1, 1, "0", "1")
        rewritten(1, LATER, None)
        assert counted() == (2, 0, "0-1", "")
        rewritten(0, LATER, "a")
        assert counted() == (1, 1, "1", "0")
        rewritten(1, LATER + 1, "a")
        assert counted() == (0, 2, "", "0-1")

    def test_a_cell_that_changed_since_it_was_read_is_not_rewritten(self, store: Migratable) -> None:
        grid = Grid.create(store, 3)
        for row in range(3):
            grid.write("a", row, 5)
        found = outdated(store, grid)
        grid.write("a", 1, 6)
        assert store.rewrite_cells(grid.ref, later(found)) == 2
        assert store.rewrite_cells(grid.ref, later(found)) == 0
        assert [(each.task_index, each.cell.status) for each in outdated(store, grid)] == [(1, 6)]

    def test_a_writer_continues_from_a_cell_that_another_process_rewrote(
        self, store: Migratable, other_store: Migratable
    ) -> None:
        grid = Grid.create(store, 1, ("a",))
        grid.begin("a", 0)
        grid.write("a", 0, 40, payload='{"progress":{"done":1,"total":4}}')
        other = grid.seen_by(other_store)
        progress = '{"progress":{"done":3,"total":4}}'
        rewritten = later(outdated(other_store, other), lambda cell: replace(cell, payload=progress))
        assert other_store.rewrite_cells(grid.ref, rewritten)
        cell = grid.write("a", 0, 50, keep_payload=True).cell
        assert (cell.version, cell.payload, cell.schema_version) == (3, progress, LATER)
        assert (grid.cell("a", 0), grid.manager().summary().fraction) == (cell, 0.75)

    def test_cells_of_a_deleted_job_are_not_found(self, store: Migratable) -> None:
        grid = busy(store)
        found = later(outdated(store, grid))
        grid.delete()
        Grid.create(store, 3)
        for use in (lambda: outdated(store, grid), lambda: store.rewrite_cells(grid.ref, found)):
            with pytest.raises(JobNotFound):
                use()

    @smoke
    def test_adopting_a_foreign_job_adds_an_incarnation_and_keeps_its_states(self, store: Migratable) -> None:
        old = foreign(store)
        old.write("a", 0, 40, message="half way", payload='{"n":1}')
        old.write("b", 2, FINISHED)
        states = [replace(each, schema_version=0) for each in old.states()]
        job = store.adopt_job(old.ref, incarnation := new_incarnation())
        assert (job.incarnation, job.schema, job.revision > 0) == (incarnation, 0, True)
        new = Grid(store, job.ref)
        assert new.job == job
        assert [replace(each, schema_version=0) for each in new.states()] == states
        assert (new.lowest().task_index, new.lowest("a").task_index) == (0, 1)
        assert new.manager().summary().running == 1
        assert [each.ref for each in every_job(store)] == [job.ref]

    def test_after_an_adoption_the_reference_without_an_incarnation_is_not_found(self, store: Migratable) -> None:
        old = foreign(store)
        old.write("a", 0, 5)
        watch = store.watch(old.ref, Scope())
        store.adopt_job(old.ref, new_incarnation())
        for use in (
            old.states,
            old.lowest,
            lambda: old.write("a", 0, 6),
            lambda: old.begin("a", 1),
            lambda: watch.read(5),
        ):
            with pytest.raises(JobNotFound):
                use()
        watch.close()

    def test_a_job_is_adopted_once(self, store: Migratable) -> None:
        old = foreign(store)
        first = store.adopt_job(old.ref, new_incarnation())
        assert store.adopt_job(old.ref, new_incarnation()).incarnation == first.incarnation
        Grid(store, first.ref).delete()
        with pytest.raises(JobNotFound):
            store.adopt_job(old.ref, new_incarnation())

    def test_an_adopted_job_stays_tombstoned(self, store: Migratable) -> None:
        old = foreign(store)
        old.update(lambda job: replace(job, tombstoned_at=store.now()))
        job = store.adopt_job(old.ref, new_incarnation())
        assert [each.ref for each in every_job(store, tombstoned=True)] == [job.ref]

    def test_a_job_accepts_writes_during_its_adoption_and_has_exact_tallies_afterwards(self, store: Migratable) -> None:
        old = foreign(store)
        for row in range(3):
            old.write("a", row, 5)
        grid = Grid(store, store.adopt_job(old.ref, new_incarnation()).ref)
        assert grid.run("a", 0).cell.version == 3
        grid.write("b", 1, 7)
        found = [replace(each, cell=replace(each.cell, schema_version=1)) for each in outdated(store, grid, 1)]
        grid.write("a", 1, 6)
        store.rewrite_cells(grid.ref, found)
        left = [replace(each, cell=replace(each.cell, schema_version=1)) for each in outdated(store, grid, 1)]
        store.rewrite_cells(grid.ref, left)
        assert outdated(store, grid, 1) == []
        grid.update(lambda job: replace(job, schema_version=1))
        summary = grid.manager().summary()
        assert (summary.finished, summary.running, summary.not_started) == (1, 3, 2)
        assert grid.manager().summary(indexes=False).running == 3
        assert grid.lowest().task_index == 0

    def test_deleting_a_job_during_its_adoption_leaves_nothing(self, store: Migratable) -> None:
        old = foreign(store)
        for row in range(3):
            old.write("a", row, 5)
        grid = Grid(store, store.adopt_job(old.ref, new_incarnation()).ref)
        store.rewrite_cells(grid.ref, later(outdated(store, grid)[:1]))
        grid.delete()
        successor = Grid.create(store, 3)
        assert (successor.states(), store.purge()) == ([], 0)
