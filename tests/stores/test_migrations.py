"""Migrations on every store, with whatever may happen between any two of their steps."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from between import Between

from celery_statemanager import ConfigurationError, JobNotFound, Manager, Store, migrate_jobs
from celery_statemanager.manager import new_job
from celery_statemanager.migrations import STEPS, MigrationReport, Skip, Steps, runner
from celery_statemanager.models import SCHEMA_VERSION
from celery_statemanager.records import Cell, JobKey, JobRecord
from celery_statemanager.testing import StoreFactory, WrappedStore
from celery_statemanager.testing.kit import FINISHED, PATIENCE, Grid, every_job, smoke

LATER = Steps()
"""A history that goes on from the shipped one, with a gap at 5."""


@LATER.states(1)
@LATER.states(2)
def marked(_: JobRecord, cell: Cell) -> Cell:
    return replace(cell, message=f"{cell.message or ''}+")


@LATER.jobs(3)
def hidden(job: JobRecord) -> JobRecord:
    return replace(job, tombstoned_at=job.tombstoned_at or 1)


@LATER.states(4)
def unmarked(_: JobRecord, cell: Cell) -> Cell:
    return replace(cell, message=(cell.message or "").rstrip("+"))


@LATER.states(6)
def beyond_the_gap(_: JobRecord, cell: Cell) -> Cell:
    raise AssertionError


@pytest.fixture(autouse=True)
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "AT_ONCE", 2)


def a_job(store: Store, name: str = "job") -> Grid:
    """Create a job of three rows with a message each, one of them blocked by a failure."""
    grid = Grid.create(store, 3, ("a", "b"), job_id=name)
    for row in range(2):
        grid.begin("a", row)
        grid.end("a", row, message=f"row {row}")
    grid.begin("a", 2)
    grid.end("a", 2, -1, message="broken")
    return grid


def a_foreign_job(store: Store, name: str = "job") -> Grid:
    grid = Grid(store, store.create_job(replace(new_job(name, 3), incarnation="")).ref)
    for row in range(3):
        grid.write("a", row, 5 + row)
    return grid


def as_it_is_now(grid: Grid) -> Grid:
    return Grid(grid.store, grid.store.get_job(grid.ref.key).ref)


def told(grid: Grid) -> list[tuple[Any, ...]]:
    """Give what readers must find as it was."""
    states = sorted(grid.states(), key=lambda state: (state.tag, state.task_index))
    return [(s.tag, s.task_index, s.status, s.version, s.timestamp, s.event_id, s.attempt) for s in states]


def test_the_shipped_steps_lead_to_the_schema_of_new_jobs_without_a_gap() -> None:
    assert STEPS.checked(SCHEMA_VERSION) == STEPS.newest == SCHEMA_VERSION


def test_states_and_job_are_brought_to_the_target_and_say_what_they_said(store: Store) -> None:
    grid = a_job(store)
    before, activity = told(grid), grid.job.last_activity
    assert migrate_jobs(store, 3, steps=LATER) == MigrationReport(target=3, scanned=1, migrated=1, states=4)
    assert told(grid) == before
    assert {state.schema_version for state in grid.states()} == {3}
    assert [grid.state("a", row).message for row in range(3)] == ["row 0+", "row 1+", "broken+"]
    job = grid.job
    assert (job.schema_version, job.tombstoned_at, job.last_activity) == (3, 1, activity)


def test_a_second_run_finds_nothing_to_do(store: Store) -> None:
    grid = a_job(store)
    migrate_jobs(store, 2, steps=LATER)
    before = (grid.job, grid.states())
    assert migrate_jobs(store, 2, steps=LATER) == MigrationReport(target=2, scanned=1)
    assert (grid.job, grid.states()) == before


def test_without_a_target_it_is_the_newest_and_jobs_of_this_release_are_there(store: Store) -> None:
    grid = a_job(store)
    before = grid.job
    assert migrate_jobs(store) == MigrationReport(target=SCHEMA_VERSION, scanned=1)
    assert grid.job == before


def test_a_job_of_another_program_is_taken_over(store: Store) -> None:
    old = a_foreign_job(store)
    before = told(old)
    assert migrate_jobs(store).migrated == 1
    new = as_it_is_now(old)
    assert (new.job.schema, told(new)) == (SCHEMA_VERSION, before)
    assert new.manager().summary(indexes=False).running == 3
    for row in range(3):
        new.run("a", row)
    assert new.manager().get_state().finished
    new.cancel()
    assert migrate_jobs(store) == MigrationReport(target=SCHEMA_VERSION, scanned=1)


def test_a_run_may_leave_jobs_of_other_programs_alone(store: Store) -> None:
    a_foreign_job(store)
    assert migrate_jobs(store, foreign=False).skipped == {Skip.FOREIGN.value: 1}
    assert store.get_job(JobKey("job")).incarnation == ""


def test_a_dry_run_writes_nothing_and_tells_what_would_be_done(store: Store) -> None:
    class ReadOnly(WrappedStore):
        def calling(self, method: str, call: Callable[[], Any]) -> Any:
            assert method in {"list_jobs", "outdated_cells", "get_job"}, method
            return call()

    a_job(store, "ours")
    a_foreign_job(store, "foreign")
    before = [(job, Grid(store, job.ref).states()) for job in every_job(store)]
    seen: dict[str, object] = {}
    report = migrate_jobs(
        ReadOnly(store), 2, steps=LATER, dry_run=True, tell=lambda job, what: seen.update({job.job_id: what})
    )
    assert report == MigrationReport(target=2, scanned=2, migrated=2, states=7)
    assert seen == {"ours": 4, "foreign": 3}
    assert [(job, Grid(store, job.ref).states()) for job in every_job(store)] == before


def test_a_limit_ends_it_after_so_many_jobs(store: Store) -> None:
    for number in range(5):
        a_job(store, f"job {number}")
    assert [migrate_jobs(store, 2, steps=LATER, limit=2).migrated for _ in range(4)] == [2, 2, 1, 0]
    assert {job.schema for job in every_job(store)} == {2}


def test_one_job_alone_can_be_asked_for(store: Store) -> None:
    one, other = a_job(store, "one"), Grid.create(store, job_id="other", run_token="r")
    assert migrate_jobs(store, 2, job_id="one", steps=LATER).migrated == 1
    assert (one.job.schema, other.job.schema) == (2, 1)
    assert migrate_jobs(store, 2, job_id="other", run_token="r", steps=LATER).migrated == 1
    with pytest.raises(JobNotFound):
        migrate_jobs(store, 2, job_id="other", steps=LATER)


def test_what_a_worker_of_an_earlier_release_has_written_since_is_migrated_where_the_job_is_asked_for(
    store: Store,
) -> None:
    grid = a_job(store)
    migrate_jobs(store, 2, steps=LATER)
    grid.write("c", 0, 5, message="late")
    assert grid.cell("c", 0).schema_version == 1
    assert migrate_jobs(store, 2, steps=LATER) == MigrationReport(target=2, scanned=1)
    report = MigrationReport(target=2, scanned=1, migrated=1, states=1)
    assert migrate_jobs(store, 2, job_id="job", steps=LATER, dry_run=True) == report
    assert migrate_jobs(store, 2, job_id="job", steps=LATER) == report
    assert migrate_jobs(store, 2, job_id="job", steps=LATER) == MigrationReport(target=2, scanned=1)
    assert grid.cell("c", 0).message == "late+"


def test_there_is_no_way_back(store: Store) -> None:
    grid = a_job(store)
    migrate_jobs(store, 3, steps=LATER)
    before = grid.job
    assert migrate_jobs(store, 2, steps=LATER).skipped == {Skip.NEWER.value: 1}
    with pytest.raises(ConfigurationError, match="job 'job' has schema 3, there is no way back to 2: give a target"):
        migrate_jobs(store, 2, job_id="job", steps=LATER)
    assert grid.job == before
    with pytest.raises(ConfigurationError, match=r"newer release \(schema 3, this one knows 1\): upgrade"):
        Manager.open(store, "job")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (6, "no step leads to schema 5, so schema 6 cannot be reached: register one, @STEPS.states(5)"),
        (7, "this release knows no schema 7, its newest is 6: upgrade celery-statemanager here"),
        (0, "the target is a schema's number, 1 … 6, not 0"),
        (-1, "the target is a schema's number, 1 … 6, not -1"),
        (True, "the target is a schema's number, 1 … 6, not True"),
        ("2", "the target is a schema's number, 1 … 6, not '2'"),
    ],
)
def test_a_target_that_no_steps_lead_to_is_refused_before_anything_is_read(target: Any, words: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        migrate_jobs(WrappedStore(None), target, steps=LATER)  # type: ignore[arg-type]
    assert str(raised.value).startswith(words)


def test_a_number_is_given_once() -> None:
    with pytest.raises(ValueError, match="step 2 is marked already: take the next number"):
        LATER.states(2)
    with pytest.raises(ValueError, match="steps are numbered from 1, not 0"):
        LATER.jobs(0)


def test_a_step_that_changes_what_a_state_says_is_refused_and_nothing_is_written(store: Store) -> None:
    bad = Steps()
    bad.states(1)(lambda _, cell: cell)
    bad.states(2)(lambda _, cell: replace(cell, status=FINISHED))
    grid = a_job(store)
    before = told(grid)
    with pytest.raises(ValueError, match="step 2 changes a state's status: that is for writers to do"):
        migrate_jobs(store, 2, steps=bad)
    assert (told(grid), grid.job.schema) == (before, 1)


def at_every_step(
    store: Store, make: Callable[[Store, str], Grid], action: Callable[[Grid], object], check: Callable[[Grid], object]
) -> None:
    """Migrate a new job again and again, acting on it before each call to the store but the first."""
    for number in range(1, 100):
        grid = make(store, f"job {number}")
        between = Between(store, number, lambda grid=grid: action(grid))
        migrate_jobs(between, 2, job_id=f"job {number}", steps=LATER)
        if between.left >= 0:
            assert number > 3
            return
        check(grid)
    raise AssertionError("no end of steps")


MAKERS = pytest.mark.parametrize("make", [a_job, a_foreign_job])


@MAKERS
def test_a_live_writer_between_any_two_steps_wins_and_is_migrated(
    store: Store, make: Callable[[Store, str], Grid]
) -> None:
    def write(grid: Grid) -> None:
        now = as_it_is_now(grid)
        now.write("a", 0, 9, message="live")
        now.write("c", 1, 9, message="new")
        now.cancel("meanwhile")

    def check(grid: Grid) -> None:
        now = as_it_is_now(grid)
        assert now.job.schema == 2
        assert now.job.cancelled is not None
        assert now.state("a", 0).status == now.state("c", 1).status == 9
        assert now.cell("a", 0).version == grid_versions[grid.ref.key] + 1
        assert list(store.outdated_cells(now.ref, SCHEMA_VERSION)) == []
        columns = {column.tag: column.tally for column in store.column_summaries(now.ref, "a")[1]}
        assert columns == {column.tag: column.tally for column in store.column_summaries(now.ref, "a", indexes=True)[1]}
        assert columns["a"].running == (1 if make is a_job else 3)

    grid_versions: dict[JobKey, int] = {}

    def made(store: Store, name: str) -> Grid:
        grid = make(store, name)
        grid_versions[grid.ref.key] = grid.cell("a", 0).version
        return grid

    at_every_step(store, made, write, check)


@MAKERS
def test_another_run_between_any_two_steps_does_no_harm(store: Store, make: Callable[[Store, str], Grid]) -> None:
    def check(grid: Grid) -> None:
        now = as_it_is_now(grid)
        assert now.job.schema == 2
        marks = {state.message and state.message.count("+") for state in now.states("a")}
        assert marks == ({1} if make is a_job else {2 if _counts_zero(store) else 1})
        assert (
            store.column_summaries(now.ref, "a")[1][0].tally
            == store.column_summaries(now.ref, "a", indexes=True)[1][0].tally
        )

    at_every_step(store, make, lambda grid: migrate_jobs(store, 2, job_id=grid.ref.key.job_id, steps=LATER), check)


def _counts_zero(store: Store) -> bool:
    """Whether states of another program's job have schema 0: where programs write that are not this package."""
    return type(store).__name__ == "FirestoreStore"


@MAKERS
def test_a_job_deleted_between_any_two_steps_is_gone(store: Store, make: Callable[[Store, str], Grid]) -> None:
    def check(grid: Grid) -> None:
        with pytest.raises(JobNotFound):
            as_it_is_now(grid)
        assert store.purge() == 0

    def delete(grid: Grid) -> None:
        as_it_is_now(grid).delete()

    at_every_step_or_gone(store, make, delete, check)


def at_every_step_or_gone(store: Store, make: Any, action: Any, check: Any) -> None:
    for number in range(1, 100):
        grid = make(store, "job")
        between = Between(store, number, lambda grid=grid: action(grid))
        report = migrate_jobs(between, 2, job_id="job", steps=LATER)
        if between.left >= 0:
            assert number > 3
            return
        assert report.skipped == {Skip.CHANGED.value: 1} or number > 3
        check(grid)


@MAKERS
def test_a_run_that_is_cut_off_anywhere_is_gone_on_with_by_the_next(
    store: Store, make: Callable[[Store, str], Grid]
) -> None:
    class CutOffError(Exception):
        pass

    def cut_off() -> None:
        raise CutOffError

    for number in range(100):
        grid = make(store, f"job {number}")
        before = told(grid)
        between = Between(store, number, cut_off)
        try:
            migrate_jobs(between, 2, job_id=grid.ref.key.job_id, steps=LATER)
        except CutOffError:
            now = as_it_is_now(grid)
            assert told(now) == before
            assert now.job.schema < 2
            migrate_jobs(store, 2, job_id=grid.ref.key.job_id, steps=LATER)
        now = as_it_is_now(grid)
        assert (told(now), now.job.schema) == (before, 2)
        assert (
            store.column_summaries(now.ref, "a")[1][0].tally
            == store.column_summaries(now.ref, "a", indexes=True)[1][0].tally
        )
        if between.left >= 0:
            return


def test_a_job_that_is_written_to_all_the_while_is_left_to_the_next_run(store: Store) -> None:
    grid = a_job(store)

    class Restless(WrappedStore):
        def rewrite_cells(self, ref: Any, cells: Any) -> int:
            grid.write("c", 0, 5)
            for each in cells:
                grid.write(each.tag, each.task_index, 5)
            return super().rewrite_cells(ref, cells)

    assert migrate_jobs(Restless(store), 2, steps=LATER).skipped == {Skip.CHANGED.value: 1}
    assert migrate_jobs(store, 2, steps=LATER).migrated == 1


def test_latches_fall_that_were_due_and_no_others(store: Store) -> None:
    grid = Grid.create(store, 1, ("a",), success="call")
    migrate_jobs(store, 2, steps=LATER)
    assert grid.fallen == set()
    grid.run("a", 0)
    assert grid.fallen == {"success", "settled"}


def test_writers_and_migrations_at_once_lose_nothing(store: Store) -> None:
    steps = Steps()
    for number in range(1, 2000):
        steps.states(number)(lambda _, cell: cell)
    rows, writes = 4, 25
    grid = Grid.create(store, rows, ("a",))

    def write(row: int) -> None:
        for number in range(writes):
            grid.write("a", row, 2 + number)

    with ThreadPoolExecutor(rows) as pool:
        writers = [pool.submit(write, row) for row in range(rows)]
        target = 1
        while not all(writer.done() for writer in writers) or target < 3:
            target += 1
            migrate_jobs(store, target, steps=steps)
        for writer in writers:
            writer.result()
    migrate_jobs(store, target + 1, steps=steps)
    assert [(s.version, s.status, s.schema_version) for s in grid.states()] == [(writes, 1 + writes, target + 1)] * rows
    ((column,), (counted,)) = (store.column_summaries(grid.ref, indexes=each)[1] for each in (False, True))
    assert (column.tally, column.tally.running) == (counted.tally, rows)


CHILD = """
import sys
from celery_statemanager import migrate_jobs, open_store
from celery_statemanager.migrations import Steps, runner
from celery_statemanager.testing import WrappedStore

class Telling(WrappedStore):
    def rewrite_cells(self, ref, cells):
        rewritten = super().rewrite_cells(ref, cells)
        print(rewritten, flush=True)
        if sys.stdin.readline() == "":
            raise SystemExit("nobody killed it")
        return rewritten

steps = Steps()
steps.states(1)(lambda job, cell: cell)
steps.states(2)(lambda job, cell: cell)
runner.AT_ONCE = 20
migrate_jobs(Telling(open_store(sys.argv[1])), 2, steps=steps)
"""


@pytest.fixture
def killed(store: Store, store_factory: StoreFactory) -> Iterator[Callable[[], int]]:
    """Give what migrates in a process of its own, which is killed when it has rewritten two portions."""
    if store_factory.url is None:
        pytest.skip("its data live and die with one store object")
    child = None

    def killed() -> int:
        nonlocal child
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        child = subprocess.Popen([sys.executable, "-c", CHILD, store_factory.url], **pipes)
        rewritten = int(child.stdout.readline())
        child.stdin.write(b"go on\n")
        child.stdin.flush()
        rewritten += int(child.stdout.readline())
        child.kill()
        return rewritten

    yield killed
    if child is not None:
        child.communicate(timeout=PATIENCE)


@pytest.mark.parametrize("foreign", [False, True])
@smoke
def test_a_killed_migration_is_gone_on_with(store: Store, killed: Callable[[], int], foreign: bool) -> None:
    rows = 100
    job = new_job("job", rows)
    grid = Grid(store, store.create_job(replace(job, incarnation="" if foreign else job.incarnation)).ref)
    for row in range(rows):
        grid.write("a", row, 5 + row % 50)
    before = told(grid)
    assert killed() == 40
    now = as_it_is_now(grid)
    assert (told(now), now.job.schema < 2) == (before, True)
    assert sum(state.schema_version == 2 for state in now.states()) == 40
    steps = Steps()
    for number in (1, 2):
        steps.states(number)(lambda _, cell: cell)
    assert migrate_jobs(store, 2, steps=steps).states == rows - 40
    assert (told(now), now.job.schema) == (before, 2)
    assert [column.tally.running for column in store.column_summaries(now.ref)[1]] == [rows]
