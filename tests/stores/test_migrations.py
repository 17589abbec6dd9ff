"""Migrations on every store, with other operations between any two of their steps."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from between import Between

from celery_statemanager import ConfigurationError, JobNotFound, Manager, Store, migrations
from celery_statemanager.migrations import STEPS, MigrationReport, Skip, Steps
from celery_statemanager.models import SCHEMA_VERSION
from celery_statemanager.records import Cell, JobKey, JobRecord, new_job
from celery_statemanager.testing import StoreFactory, WrappedStore
from celery_statemanager.testing.kit import FINISHED, PATIENCE, Grid, every_job, smoke

NEXT = SCHEMA_VERSION + 1
"""The schema of the next release."""

LAST = NEXT + 4
"""The last schema that ``LATER`` mentions."""

LATER = Steps()
"""Steps of later releases, with a gap at ``LAST - 1``."""

migrate_jobs = partial(migrations.migrate_jobs, batch_size=2)
"""Rewrites the states of a job in several batches."""

for number in range(1, SCHEMA_VERSION):
    LATER.jobs(number)(lambda job: job)


@LATER.states(SCHEMA_VERSION)
@LATER.states(NEXT)
def add_plus(_: JobRecord, cell: Cell) -> Cell:
    return replace(cell, message=f"{cell.message or ''}+")


@LATER.jobs(NEXT + 1)
def tombstone(job: JobRecord) -> JobRecord:
    return replace(job, tombstoned_at=job.tombstoned_at or 1)


@LATER.states(NEXT + 2)
def remove_plus(_: JobRecord, cell: Cell) -> Cell:
    return replace(cell, message=(cell.message or "").rstrip("+"))


@LATER.states(LAST)
def unreachable(_: JobRecord, cell: Cell) -> Cell:
    raise AssertionError


def create_job(store: Store, name: str = "job") -> Grid:
    """Create a job of three rows with a message each. The failure of the last row blocks its later stage."""
    grid = Grid.create(store, 3, ("a", "b"), job_id=name)
    for row in range(2):
        grid.begin("a", row)
        grid.end("a", row, message=f"row {row}")
    grid.begin("a", 2)
    grid.end("a", 2, -1, message="broken")
    return grid


def create_job_of_schema_1(store: Store, name: str = "job") -> Grid:
    """Create a job as the releases with schema 1 did."""
    grid = create_job(store, name)
    found = [replace(each, cell=replace(each.cell, schema_version=1)) for each in store.outdated_cells(grid.ref, NEXT)]
    assert store.rewrite_cells(grid.ref, found) == 4
    grid.update(lambda job: replace(job, schema_version=1))
    return grid


def create_foreign_job(store: Store, name: str = "job") -> Grid:
    """Create a job without an incarnation, as another program does."""
    grid = Grid(store, store.create_job(replace(new_job(name, 3), incarnation="")).ref)
    for row in range(3):
        grid.write("a", row, 5 + row)
    return grid


def empty_steps(newest: int) -> Steps:
    """Return steps that change nothing but the schema."""
    steps = Steps()
    for number in range(1, newest + 1):
        steps.states(number)(lambda _, cell: cell)
    return steps


def reload(grid: Grid) -> Grid:
    return Grid(grid.store, grid.store.get_job(grid.ref.key).ref)


def fixed_fields(grid: Grid) -> list[tuple[Any, ...]]:
    """Return the fields of all states that a migration must preserve."""
    states = sorted(grid.states(), key=lambda state: (state.tag, state.task_index))
    return [(s.tag, s.task_index, s.status, s.version, s.timestamp, s.event_id, s.attempt) for s in states]


def test_the_steps_of_this_release_lead_to_the_schema_of_new_jobs() -> None:
    assert STEPS.checked(SCHEMA_VERSION) == STEPS.newest == SCHEMA_VERSION


def test_states_and_job_reach_the_target_and_keep_their_fixed_fields(store: Store) -> None:
    grid = create_job(store)
    before, activity = fixed_fields(grid), grid.job.last_activity
    assert migrate_jobs(store, NEXT + 1, steps=LATER) == MigrationReport(
        target=NEXT + 1, scanned=1, migrated=1, states=4
    )
    assert fixed_fields(grid) == before
    assert {state.schema_version for state in grid.states()} == {NEXT + 1}
    assert [grid.state("a", row).message for row in range(3)] == ["row 0+", "row 1+", "broken+"]
    job = grid.job
    assert (job.schema_version, job.tombstoned_at, job.last_activity) == (NEXT + 1, 1, activity)


def test_a_second_run_changes_nothing(store: Store) -> None:
    grid = create_job(store)
    migrate_jobs(store, NEXT, steps=LATER)
    before = (grid.job, grid.states())
    assert migrate_jobs(store, NEXT, steps=LATER) == MigrationReport(target=NEXT, scanned=1)
    assert (grid.job, grid.states()) == before


def test_the_default_target_is_the_schema_of_this_release(store: Store) -> None:
    grid = create_job(store)
    before = grid.job
    assert migrate_jobs(store) == MigrationReport(target=SCHEMA_VERSION, scanned=1)
    assert grid.job == before


def test_a_job_of_schema_1_is_migrated(store: Store) -> None:
    grid = create_job_of_schema_1(store)
    before, columns = fixed_fields(grid), store.column_summaries(grid.ref)[1]
    assert migrate_jobs(store, 1) == MigrationReport(target=1, scanned=1)
    assert migrate_jobs(store) == MigrationReport(target=SCHEMA_VERSION, scanned=1, migrated=1, states=4)
    after = store.column_summaries(grid.ref)[1]
    assert (fixed_fields(grid), [each.tally for each in after]) == (before, [each.tally for each in columns])
    assert grid.job.schema == SCHEMA_VERSION
    assert {state.schema_version for state in grid.states()} == {SCHEMA_VERSION}
    assert migrate_jobs(store) == MigrationReport(target=SCHEMA_VERSION, scanned=1)


def test_a_job_of_another_program_is_migrated(store: Store) -> None:
    old = create_foreign_job(store)
    before = fixed_fields(old)
    assert migrate_jobs(store).migrated == 1
    new = reload(old)
    assert (new.job.schema, fixed_fields(new)) == (SCHEMA_VERSION, before)
    assert new.manager().summary(indexes=False).running == 3
    for row in range(3):
        new.run("a", row)
    assert new.manager().get_state().finished
    new.cancel()
    assert migrate_jobs(store) == MigrationReport(target=SCHEMA_VERSION, scanned=1)


def test_foreign_false_skips_jobs_of_other_programs(store: Store) -> None:
    create_foreign_job(store)
    assert migrate_jobs(store, foreign=False).skipped == {Skip.FOREIGN.value: 1}
    assert store.get_job(JobKey("job")).incarnation == ""


def test_a_dry_run_writes_nothing_and_reports_what_would_be_done(store: Store) -> None:
    class ReadOnly(WrappedStore):
        def calling(self, method: str, call: Callable[[], Any]) -> Any:
            assert method in {"list_jobs", "outdated_cells", "get_job"}, method
            return call()

    create_job(store, "ours")
    create_foreign_job(store, "foreign")
    before = [(job, Grid(store, job.ref).states()) for job in every_job(store)]
    reported: dict[str, object] = {}
    report = migrate_jobs(
        ReadOnly(store), NEXT, steps=LATER, dry_run=True, tell=lambda job, what: reported.update({job.job_id: what})
    )
    assert report == MigrationReport(target=NEXT, scanned=2, migrated=2, states=7)
    assert reported == {"ours": 4, "foreign": 3}
    assert [(job, Grid(store, job.ref).states()) for job in every_job(store)] == before


def test_limit_ends_a_run_after_that_many_jobs(store: Store) -> None:
    for number in range(5):
        create_job(store, f"job {number}")
    assert [migrate_jobs(store, NEXT, steps=LATER, limit=2).migrated for _ in range(4)] == [2, 2, 1, 0]
    assert {job.schema for job in every_job(store)} == {NEXT}


def test_job_id_and_run_token_select_one_job(store: Store) -> None:
    one, other = create_job(store, "one"), Grid.create(store, job_id="other", run_token="r")
    assert migrate_jobs(store, NEXT, job_id="one", steps=LATER).migrated == 1
    assert (one.job.schema, other.job.schema) == (NEXT, SCHEMA_VERSION)
    assert migrate_jobs(store, NEXT, job_id="other", run_token="r", steps=LATER).migrated == 1
    with pytest.raises(JobNotFound):
        migrate_jobs(store, NEXT, job_id="other", steps=LATER)


def test_job_id_migrates_states_that_an_earlier_release_wrote_after_the_migration(store: Store) -> None:
    grid = create_job(store)
    migrate_jobs(store, NEXT, steps=LATER)
    grid.write("c", 0, 5, message="late")
    assert grid.cell("c", 0).schema_version == SCHEMA_VERSION
    assert migrate_jobs(store, NEXT, steps=LATER) == MigrationReport(target=NEXT, scanned=1)
    report = MigrationReport(target=NEXT, scanned=1, migrated=1, states=1)
    assert migrate_jobs(store, NEXT, job_id="job", steps=LATER, dry_run=True) == report
    assert migrate_jobs(store, NEXT, job_id="job", steps=LATER) == report
    assert migrate_jobs(store, NEXT, job_id="job", steps=LATER) == MigrationReport(target=NEXT, scanned=1)
    assert grid.cell("c", 0).message == "late+"


def test_a_job_with_a_later_schema_is_not_migrated_back(store: Store) -> None:
    grid = create_job(store)
    migrate_jobs(store, NEXT + 1, steps=LATER)
    before = grid.job
    assert migrate_jobs(store, NEXT, steps=LATER).skipped == {Skip.NEWER.value: 1}
    text = f"job 'job' has schema {NEXT + 1} and cannot be migrated back to {NEXT}: choose a target"
    with pytest.raises(ConfigurationError, match=text):
        migrate_jobs(store, NEXT, job_id="job", steps=LATER)
    assert grid.job == before
    text = rf"newer release \(schema {NEXT + 1}, this release supports {SCHEMA_VERSION}\): upgrade"
    with pytest.raises(ConfigurationError, match=text):
        Manager.open(store, "job")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (LAST, f"no step leads to schema {LAST - 1}, so schema {LAST} cannot be reached: register one, @STEPS.states("),
        (LAST + 1, f"this release supports schemas up to {LAST}, not {LAST + 1}: upgrade celery-statemanager"),
        (0, f"the target must be a schema number, 1 … {LAST}, not 0"),
        (-1, f"the target must be a schema number, 1 … {LAST}, not -1"),
        (True, f"the target must be a schema number, 1 … {LAST}, not True"),
        ("2", f"the target must be a schema number, 1 … {LAST}, not '2'"),
    ],
)
def test_an_unreachable_target_is_rejected_before_the_store_is_read(target: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        migrate_jobs(WrappedStore(None), target, steps=LATER)  # type: ignore[arg-type]
    assert str(raised.value).startswith(message)


def test_a_step_number_is_registered_once() -> None:
    with pytest.raises(ValueError, match=rf"step {NEXT} is already registered \(add_plus\): use the next number"):
        LATER.states(NEXT)
    with pytest.raises(ValueError, match="step numbers start at 1, not 0"):
        LATER.jobs(0)


def test_a_step_that_changes_a_fixed_field_is_rejected_and_nothing_is_written(store: Store) -> None:
    bad = empty_steps(SCHEMA_VERSION)
    bad.states(NEXT)(lambda _, cell: replace(cell, status=FINISHED))
    grid = create_job(store)
    before = fixed_fields(grid)
    with pytest.raises(ValueError, match=f"step {NEXT} changes a state's status: a step must preserve it"):
        migrate_jobs(store, NEXT, steps=bad)
    assert (fixed_fields(grid), grid.job.schema) == (before, SCHEMA_VERSION)


def at_every_step(
    store: Store,
    create: Callable[[Store, str], Grid],
    action: Callable[[Grid], object],
    check: Callable[[Grid], object],
) -> None:
    """For each store call of a migration but the first, migrate a new job and perform the action before that call."""
    for number in range(1, 100):
        grid = create(store, f"job {number}")
        between = Between(store, number, lambda grid=grid: action(grid))
        migrate_jobs(between, NEXT, job_id=f"job {number}", steps=LATER)
        if between.left >= 0:
            assert number > 3
            return
        check(grid)
    raise AssertionError("a migration of three rows made 99 store calls")


CREATORS = pytest.mark.parametrize("create", [create_job, create_foreign_job])


@CREATORS
def test_a_write_between_any_two_steps_is_kept_and_migrated(store: Store, create: Callable[[Store, str], Grid]) -> None:
    def write(grid: Grid) -> None:
        now = reload(grid)
        now.write("a", 0, 9, message="changed")
        now.write("c", 1, 9, message="new")
        now.cancel("meanwhile")

    def check(grid: Grid) -> None:
        now = reload(grid)
        assert now.job.schema == NEXT
        assert now.job.cancelled is not None
        assert now.state("a", 0).status == now.state("c", 1).status == 9
        assert now.cell("a", 0).version == versions[grid.ref.key] + 1
        assert list(store.outdated_cells(now.ref, SCHEMA_VERSION)) == []
        columns = {column.tag: column.tally for column in store.column_summaries(now.ref, "a")[1]}
        assert columns == {column.tag: column.tally for column in store.column_summaries(now.ref, "a", indexes=True)[1]}
        assert columns["a"].running == (1 if create is create_job else 3)

    versions: dict[JobKey, int] = {}

    def create_and_note_version(store: Store, name: str) -> Grid:
        grid = create(store, name)
        versions[grid.ref.key] = grid.cell("a", 0).version
        return grid

    at_every_step(store, create_and_note_version, write, check)


@CREATORS
def test_another_run_between_any_two_steps_is_safe(store: Store, create: Callable[[Store, str], Grid]) -> None:
    def check(grid: Grid) -> None:
        now = reload(grid)
        assert now.job.schema == NEXT
        plus_signs = {state.message and state.message.count("+") for state in now.states("a")}
        assert plus_signs == ({1} if create is create_job else {2 if foreign_states_have_schema_0(store) else 1})
        assert (
            store.column_summaries(now.ref, "a")[1][0].tally
            == store.column_summaries(now.ref, "a", indexes=True)[1][0].tally
        )

    at_every_step(store, create, lambda grid: migrate_jobs(store, NEXT, job_id=grid.ref.key.job_id, steps=LATER), check)


def foreign_states_have_schema_0(store: Store) -> bool:
    """Return whether states of other programs have schema 0, as they do in Firestore only."""
    return type(store).__name__ == "FirestoreStore"


@CREATORS
def test_a_job_deleted_between_any_two_steps_stays_deleted(store: Store, create: Callable[[Store, str], Grid]) -> None:
    def check(grid: Grid) -> None:
        with pytest.raises(JobNotFound):
            reload(grid)
        assert store.purge() == 0

    def delete(grid: Grid) -> None:
        reload(grid).delete()

    at_every_step_before_deletion(store, create, delete, check)


def at_every_step_before_deletion(store: Store, create: Any, action: Any, check: Any) -> None:
    for number in range(1, 100):
        grid = create(store, "job")
        between = Between(store, number, lambda grid=grid: action(grid))
        report = migrate_jobs(between, NEXT, job_id="job", steps=LATER)
        if between.left >= 0:
            assert number > 3
            return
        assert report.skipped == {Skip.CHANGED.value: 1} or number > 3
        check(grid)


@CREATORS
def test_an_interrupted_run_is_resumed_by_the_next_one(store: Store, create: Callable[[Store, str], Grid]) -> None:
    class InterruptionError(Exception):
        pass

    def interrupt() -> None:
        raise InterruptionError

    for number in range(100):
        grid = create(store, f"job {number}")
        before = fixed_fields(grid)
        between = Between(store, number, interrupt)
        try:
            migrate_jobs(between, NEXT, job_id=grid.ref.key.job_id, steps=LATER)
        except InterruptionError:
            now = reload(grid)
            assert fixed_fields(now) == before
            assert now.job.schema < NEXT
            migrate_jobs(store, NEXT, job_id=grid.ref.key.job_id, steps=LATER)
        now = reload(grid)
        assert (fixed_fields(now), now.job.schema) == (before, NEXT)
        assert (
            store.column_summaries(now.ref, "a")[1][0].tally
            == store.column_summaries(now.ref, "a", indexes=True)[1][0].tally
        )
        if between.left >= 0:
            return


def test_a_job_that_changes_in_every_pass_is_skipped_until_the_next_run(store: Store) -> None:
    grid = create_job(store)

    class WriteBeforeRewrite(WrappedStore):
        def rewrite_cells(self, ref: Any, cells: Any) -> int:
            grid.write("c", 0, 5)
            for each in cells:
                grid.write(each.tag, each.task_index, 5)
            return super().rewrite_cells(ref, cells)

    assert migrate_jobs(WriteBeforeRewrite(store), NEXT, steps=LATER).skipped == {Skip.CHANGED.value: 1}
    assert migrate_jobs(store, NEXT, steps=LATER).migrated == 1


def test_a_migration_leaves_latches_to_later_writes(store: Store) -> None:
    grid = Grid.create(store, 1, ("a",), success="call")
    migrate_jobs(store, NEXT, steps=LATER)
    assert grid.decided == set()
    grid.run("a", 0)
    assert grid.decided == {"success", "settled"}


def test_concurrent_writers_and_migrations_lose_no_write(store: Store) -> None:
    steps = empty_steps(2000)
    rows, writes = 4, 25
    grid = Grid.create(store, rows, ("a",))

    def write(row: int) -> None:
        for number in range(writes):
            grid.write("a", row, 2 + number)

    with ThreadPoolExecutor(rows) as pool:
        writers = [pool.submit(write, row) for row in range(rows)]
        target = SCHEMA_VERSION
        while not all(writer.done() for writer in writers) or target < NEXT + 1:
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
from celery_statemanager.migrations import Steps
from celery_statemanager.testing import WrappedStore

class Reporting(WrappedStore):
    def rewrite_cells(self, ref, cells):
        rewritten = super().rewrite_cells(ref, cells)
        print(rewritten, flush=True)
        if sys.stdin.readline() == "":
            raise SystemExit("was not killed")
        return rewritten

target, steps = int(sys.argv[2]), Steps()
for number in range(1, target + 1):
    steps.states(number)(lambda job, cell: cell)
migrate_jobs(Reporting(open_store(sys.argv[1])), target, steps=steps, batch_size=20)
"""


@pytest.fixture
def migrate_and_kill(store: Store, store_factory: StoreFactory) -> Iterator[Callable[[], int]]:
    """Return a function that migrates in another process, kills it after two portions and returns the rewritten states."""
    if store_factory.url is None:
        pytest.skip("another process cannot open this store")
    child = None

    def migrate_and_kill() -> int:
        nonlocal child
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        child = subprocess.Popen([sys.executable, "-c", CHILD, store_factory.url, str(NEXT)], **pipes)
        rewritten = int(child.stdout.readline())
        child.stdin.write(b"continue\n")
        child.stdin.flush()
        rewritten += int(child.stdout.readline())
        child.kill()
        return rewritten

    yield migrate_and_kill
    if child is not None:
        child.communicate(timeout=PATIENCE)


@pytest.mark.parametrize("foreign", [False, True])
@smoke
def test_a_killed_migration_is_resumed(store: Store, migrate_and_kill: Callable[[], int], foreign: bool) -> None:
    rows = 100
    job = new_job("job", rows)
    grid = Grid(store, store.create_job(replace(job, incarnation="" if foreign else job.incarnation)).ref)
    for row in range(rows):
        grid.write("a", row, 5 + row % 50)
    before = fixed_fields(grid)
    assert migrate_and_kill() == 40
    now = reload(grid)
    assert (fixed_fields(now), now.job.schema < NEXT) == (before, True)
    assert sum(state.schema_version == NEXT for state in now.states()) == 40
    assert migrate_jobs(store, NEXT, steps=empty_steps(NEXT)).states == rows - 40
    assert (fixed_fields(now), now.job.schema) == (before, NEXT)
    assert [column.tally.running for column in store.column_summaries(now.ref)[1]] == [rows]
