"""Data of older releases, one file of ``fixtures`` each, can be read, written, migrated and collected."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from celery import Celery
from servers import running_redis

from celery_statemanager import Manager, StateManager, Status, Store, collect_garbage, migrate_jobs, open_store
from celery_statemanager.indexset import IndexSet
from celery_statemanager.migrations import MigrationReport
from celery_statemanager.models import SCHEMA_VERSION
from celery_statemanager.records import (
    CALLBACK_ROW,
    Claim,
    Claimed,
    ClaimRequest,
    Delivery,
    JobKey,
    OutboxState,
    Returned,
    Verdict,
    Write,
)
from celery_statemanager.stores.sqlite.location import SCHEMA
from celery_statemanager.testing.contract_rerun import AGAIN, end_reset, rerun, reset
from celery_statemanager.testing.kit import FAILED, FINISHED, FakeClock, Grid, every_job, newest_jobs, purge

FIXTURES = Path(__file__).parents[1] / "fixtures"
DUMPS = sorted(FIXTURES.glob("*-*"))
WITH_MESSAGES = FIXTURES / "outbox" / "sqlite-0.1.0.sql"
"""A job of 6 rows that owns its messages, with a window of 3 rows and two publishers."""

FOREIGN = sorted((FIXTURES / "foreign").iterdir())
"""Jobs of another program: without an incarnation, schema 0, states with only the shared fields."""


def restored_sqlite(dump: Path, home: Path) -> str:
    path = home / "states.db"
    db = sqlite3.connect(path)
    db.executescript(dump.read_text())
    db.close()
    return f"sqlite:///{path}"


def restore_redis(dump: Path, server) -> None:
    """Send the commands of a dump; values are base64-encoded."""
    with server.client() as client:
        for line in dump.read_text().splitlines():
            command, key, *rest = json.loads(line)
            plain = {"ZADD": (0,), "XADD": (0, *range(1, len(rest), 2))}.get(command, ())
            client.execute_command(
                command, key, *(each if at in plain else base64.b64decode(each) for at, each in enumerate(rest))
            )


@pytest.fixture(params=DUMPS, ids=[dump.stem for dump in DUMPS])
def old_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Yield a store as an older release left it."""
    dump: Path = request.param
    if dump.name.startswith("sqlite"):
        with open_store(restored_sqlite(dump, tmp_path)) as store:
            yield store
        return
    with running_redis() as server:
        restore_redis(dump, server)
        with open_store(server.url) as store:
            yield store


def test_data_of_an_older_release_are_read(old_store: Store) -> None:
    manager = Manager.open(old_store, "etl-42")
    summary = manager.summary()
    assert (summary.expected, summary.finished, summary.running) == (6, 1, 1)
    assert (summary.failed + summary.not_run, summary.not_started) == (2, 2)
    assert str(summary.missing_indexes) == "2"
    page = manager.get_state("load", 0)
    assert (page.status, page.message, page.version) == (40, "page 4 of 10", 2)
    assert page.payload == {"progress": {"done": 4, "total": 10}, "rows": 812}
    assert manager.get_state("load", 1).message == "not run: stage 'scan' failed: ValueError: no such page"
    assert [job.job_id for job in every_job(old_store, due=True)] == ["etl-42"]
    (attempt,) = old_store.list_open_attempts()
    assert (attempt.cell.owner, attempt.cell.kept) == ("w1", '{"m": 1}')


def test_jobs_of_an_older_release_are_listed_before_and_after_new_ones(old_store: Store) -> None:
    before = {job.key for job in every_job(old_store)}
    assert len(before) == 2
    new = Grid.create(old_store, job_id="new").job
    for limit in (1, 5):
        newest, *others = newest_jobs(old_store, limit)
        assert newest == new
        assert {job.key for job in others} == before
        assert others == sorted(others, key=lambda job: job.created_at, reverse=True)
        assert all(job.metadata is None for job in others)


def test_an_open_attempt_of_an_older_release_continues(old_store: Store) -> None:
    grid = Grid(old_store, old_store.get_job(JobKey("etl-42")).ref)
    grid.write("load", 0, FINISHED, attempt=1, ends_attempt=True, keep_payload=True)
    assert grid.state("load", 0).payload == {"progress": {"done": 10, "total": 10}, "rows": 812}
    grid.run("scan", 2)
    grid.run("load", 2)
    assert grid.decided == {"failure", "settled"}
    grid.run("failure", CALLBACK_ROW)


def test_a_job_of_an_older_release_owns_no_messages(old_store: Store) -> None:
    job = old_store.get_job(JobKey("etl-42"))
    grid = Grid(old_store, job.ref)
    assert job.flow is None
    assert old_store.get_block(job.ref, 0) is None
    grid.run("scan", 2)
    grid.begin("load", 2)
    assert grid.end("load", 2, publisher="p").claimed == IndexSet()
    assert old_store.claim(job.ref, ClaimRequest(publisher="p", limit=9)) == Claimed(IndexSet(), IndexSet(), 0)
    assert old_store.get_outbox(job.ref) == OutboxState()


def counted(grid: Grid) -> tuple[int, int, str, str]:
    """Return how many cells failed and were not run, and their rows; check that index sets change no count."""
    found, bare = grid.manager().summary("load"), grid.manager().summary("load", indexes=False)
    assert (found.failed, found.not_run) == (bare.failed, bare.not_run)
    return bare.failed, bare.not_run, str(found.failed_indexes), str(found.not_run_indexes)


def test_a_blocked_cell_of_an_older_release_is_counted_once(old_store: Store, request: pytest.FixtureRequest) -> None:
    """Upgrading an SQLite file recounts its cells; in Redis the cell counts as failed until it is written or migrated."""
    grid = Grid(old_store, old_store.get_job(JobKey("etl-42")).ref)
    upgraded = "sqlite" in request.node.callspec.id
    assert counted(grid) == ((0, 1, "", "1") if upgraded else (1, 0, "1", ""))
    grid.begin("scan", 1, takes_over=True)
    assert counted(grid) == (0, 0, "", "")
    grid.end("scan", 1, FAILED)
    assert counted(grid) == (0, 1, "", "1")


def test_a_blocked_cell_that_is_migrated_is_counted_as_not_run(old_store: Store) -> None:
    grid = Grid(old_store, old_store.get_job(JobKey("etl-42")).ref)
    states = migrate_jobs(old_store, job_id="etl-42").states
    assert states == len(grid.states()) > 0
    assert counted(grid) == (0, 1, "", "1")
    assert grid.lowest("load").task_index == 1


def test_a_row_that_failed_in_an_older_release_runs_again(old_store: Store) -> None:
    grid = Grid(old_store, old_store.get_job(JobKey("etl-42")).ref)
    callback = grid.job.latches["failure"].callback
    assert rerun(grid, "1") == ()
    assert reset(grid, "scan", 1)
    assert end_reset(grid) == ()
    assert counted(grid) == (0, 0, "", "")
    assert [grid.cell(tag, 1).generation for tag in ("scan", "load")] == [2, 2]
    assert grid.begin("scan", 1, delivery=AGAIN).verdict is Verdict.BEGUN
    assert grid.end("scan", 1).decided == ()
    grid.begin("load", 1, delivery=AGAIN)
    assert grid.end("load", 1, FAILED).decided == ("failure",)
    latches = grid.job.latches
    assert latches["failure.1"].callback == latches["failure"].callback == callback
    assert latches["failure.1"].decided_at < latches["failure"].decided_at


@pytest.mark.parametrize("migrated", [False, True])
def test_a_job_of_an_older_release_cannot_be_rerun(old_store: Store, migrated: bool) -> None:
    states = StateManager(Celery("older", set_as_current=False))
    states.store = old_store
    if migrated:
        assert migrate_jobs(old_store).migrated == 2
    job = states.job("etl-42")
    reason = "it .*created by .*an earlier release.*; submit its tasks again under a new run_token"
    with pytest.raises(
        ValueError, match=f"^job 'etl-42' cannot be rerun, because its messages are not stored: {reason}$"
    ):
        job.rerun("failed")
    with pytest.raises(ValueError, match=f"^job 'etl-42' has no stored members: {reason}$"):
        job.members()
    assert job.generation == 1


def test_jobs_of_an_older_release_are_collected(old_store: Store) -> None:
    report = collect_garbage(old_store, tombstone_age=0.001, delete_age=0.002)
    assert (report.deleted, report.skipped) == (1, {"callback": 1})
    assert [job.job_id for job in every_job(old_store)] == ["etl-42"]
    assert purge(old_store) == 0


def test_jobs_of_an_older_release_are_migrated_to_this_schema(old_store: Store) -> None:
    before = {job.key: Grid(old_store, job.ref).states() for job in every_job(old_store)}
    assert {state.schema_version for states in before.values() for state in states} == {1}
    assert migrate_jobs(old_store, 1) == MigrationReport(target=1, scanned=2)
    report = migrate_jobs(old_store)
    assert (report.scanned, report.migrated, report.skipped) == (2, 2, {})
    assert {job.schema for job in every_job(old_store)} == {SCHEMA_VERSION}
    for job in every_job(old_store):
        grid = Grid(old_store, job.ref)
        assert grid.states() == [replace(each, schema_version=SCHEMA_VERSION) for each in before[job.key]]
        assert list(old_store.outdated_cells(job.ref, SCHEMA_VERSION)) == []


@pytest.mark.parametrize("dump", FOREIGN, ids=lambda dump: dump.stem)
def test_another_programs_job_in_an_old_file_is_migrated(dump: Path, tmp_path: Path) -> None:
    clock = FakeClock()
    with open_store(restored_sqlite(dump, tmp_path), clock=clock) as store:
        before = Manager.open(store, "load").list_states()
        report = migrate_jobs(store)
        assert (report.migrated, report.states) == (1, 3)
        grid = Grid(store, store.get_job(JobKey("load")).ref)
        assert grid.ref.incarnation
        assert {each.schema_version for each in grid.states()} == {grid.job.schema} == {SCHEMA_VERSION}
        expected = [(each.task_index, each.status, each.version, each.timestamp, each.message) for each in before]
        assert [(s.task_index, s.status, s.version, s.timestamp, s.message) for s in grid.states()] == expected
        assert all(each.event_id for each in grid.states())
        with grid.manager().subscribe(until_settled=True) as events:
            for row in (1, 2):
                grid.run("ingest", row)
            assert [event.state.status for event in events][-1] == Status.FINISHED
        assert grid.manager().get_state().finished
        grid.cancel()
        assert grid.begin("other", 0).verdict.value == "cancelled"
        clock.advance(60)
        assert collect_garbage(store, tombstone_age=10, delete_age=20).deleted == 1


def test_an_upgraded_file_has_the_layout_of_a_new_one(tmp_path: Path) -> None:
    """Every upgrade leads to the same layout: no old file lacks a column or an index of new ones."""

    def layout(url: str) -> dict[str, list[str]]:
        with open_store(url) as store:
            list(every_job(store))
        with sqlite3.connect(url.removeprefix("sqlite:///")) as db:
            assert db.execute("PRAGMA user_version").fetchone()[0] == SCHEMA
            tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE sql IS NOT NULL")]
            found = {name: sorted(row[1] for row in db.execute(f"PRAGMA table_info({name})")) for name in tables}
            found |= db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
        db.close()
        return found

    new = layout(f"sqlite:///{tmp_path}/new.db")
    for number, dump in enumerate([*FIXTURES.glob("sqlite-*"), WITH_MESSAGES]):
        home = tmp_path / str(number)
        home.mkdir()
        assert layout(restored_sqlite(dump, home)) == new


def test_the_claims_in_an_older_file_are_kept(tmp_path: Path) -> None:
    with open_store(restored_sqlite(WITH_MESSAGES, tmp_path), clock=FakeClock()) as store:
        grid = Grid(store, store.get_job(JobKey("etl-42")).ref)
        now = store.now()
        first, second = Claim(IndexSet([0, 1]), now, now + 30_000_000), Claim(IndexSet([2]), now, now)
        claims = {"host:7:0a1b2c3d/1": first, "ß:8:4e5f6a7b/1": second}
        assert store.get_outbox(grid.ref) == OutboxState(3, claims)
        store.write(grid.ref, Write.sent_back("scan", 0, "lost", attempt=1, is_open=True))
        store.write(grid.ref, Write.sent_back("scan", 1, "never received", attempt=0))
        returned = Returned(IndexSet([0]), IndexSet([1]))
        assert store.get_outbox(grid.ref) == OutboxState(3, claims, returned)
        request = ClaimRequest(publisher="sweep", limit=9, dead=frozenset({"ß:8:4e5f6a7b/1"}))
        assert store.claim(grid.ref, request) == Claimed(IndexSet([0, 1, 2]), IndexSet([0, 1, 2]), 3)
        assert grid.begin("scan", 0, delivery=Delivery(1), owner="w2").cell.kept == '{"m":1}'
        assert grid.begin("scan", 2, owner="w2").verdict is Verdict.BEGUN


def test_jobs_tombstoned_by_an_older_release_are_listed_as_tombstoned(tmp_path: Path) -> None:
    with open_store(restored_sqlite(FIXTURES / "sqlite-0.1.0.sql", tmp_path)) as store:
        assert [job.key for job in every_job(store, tombstoned=True)] == [JobKey("old", "r 1")]
