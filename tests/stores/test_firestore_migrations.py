"""Migrated jobs of the Go module are counted, settled, watched, cancelled and collected like ours."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import grpc
import pytest
from firestore_kit import Documents, Spy, listening
from google.protobuf import wrappers_pb2

from celery_statemanager import JobNotFound, Manager, Status, collect_garbage, migrate_jobs
from celery_statemanager.migrations import Skip
from celery_statemanager.models import SCHEMA_VERSION
from celery_statemanager.records import JobKey
from celery_statemanager.stores.firestore import FirestoreStore
from celery_statemanager.stores.firestore.values import Moment
from celery_statemanager.testing import WrappedStore
from celery_statemanager.testing.kit import Grid, purge

STAMP = 1_700_000_000_123_000


@pytest.fixture
def store(spied: FirestoreStore) -> FirestoreStore:
    return spied


@pytest.fixture
def documents(store: FirestoreStore) -> Documents:
    return Documents(store)


def go_state(tag: str, row: int, status: int, **fields: Any) -> dict[str, Any]:
    known = {"jobID": "go", "taskID": row, "tag": tag, "status": status, "message": f"{tag} {row}"}
    more = {"timestamp": Moment(STAMP + row), "version": 3, "eventID": f"{tag}-{row}", "payload": {"rows": row}}
    return {f"jobs/go/states/{tag}:{row}": {**known, **more, "schemaVersion": 1, **fields}}


@pytest.fixture
def go_job(documents: Documents) -> None:
    """Write a job of 40 tasks: 30 finished, 5 running, one failed, four never written."""
    found: dict[str, Any] = {"jobs/go": {"numTasks": 40, "deleted": False, "schemaVersion": 1}}
    for row in range(36):
        found |= go_state("ingest", row, Status.FINISHED if row < 30 else 50 if row < 35 else -12)
    documents.put_all(found)


pytestmark = pytest.mark.usefixtures("go_job")


def test_migrated_states_gain_our_fields_and_keep_theirs(store: FirestoreStore, documents: Documents) -> None:
    odd = {"payload": {"at": Moment(STAMP), "n": 1}, "traceID": "t-1", "eventID": ""}
    documents.put_all(go_state("ingest", 36, 7, **odd))
    before = Manager.open(store, "go").list_states()
    theirs = {row: documents.get(f"jobs/go/states/ingest:{row}") for row in (0, 30, 36)}
    report = migrate_jobs(store)
    assert (report.migrated, report.states, report.skipped) == (1, 37, {})
    job = documents.get("jobs/go")
    assert job["schemaVersion"] == SCHEMA_VERSION
    for row, old in theirs.items():
        new = documents.get(f"jobs/go/states/ingest:{row}")
        assert new["eventID"]
        assert {**new, **old, "eventID": new["eventID"], "schemaVersion": SCHEMA_VERSION} == new
        assert (new["incarnation"], new["attempt"], new["open"]) == (job["incarnation"], 0, False)
        assert new["column"] == f"{job['incarnation']}:ingest"
    after = Manager.open(store, "go").list_states()
    kept = [replace(each, schema_version=SCHEMA_VERSION) for each in before if each.task_index != 36]
    assert [state for state in after if state.task_index != 36] == kept


def test_a_job_of_the_go_module_is_listed_by_its_creation_once_it_is_migrated(store: FirestoreStore) -> None:
    Manager.create(store, "later", num_tasks=1)
    assert [each.job.job_id for each in store.newest_jobs()] == ["later"]
    migrate_jobs(store)
    page = store.newest_jobs(limit=1)
    page += store.newest_jobs(page[0].cursor)
    assert [each.job.job_id for each in page] == ["later", "go"]


def test_aggregates_of_a_migrated_job_cost_as_much_as_ours(store: FirestoreStore, spy: Spy) -> None:
    def cost() -> tuple[int, int]:
        spy.clear()
        manager = Manager.open(store, "go")
        summary, lowest = manager.summary(indexes=False), manager.get_state()
        assert (summary.finished, summary.running, summary.failed, summary.not_started) == (30, 5, 1, 4)
        assert (summary.fraction, lowest.status, lowest.task_index) == ((30 + 5 * 0.5) / 40, -12, 35)
        queries = [each.structured_query for each in spy.requests if hasattr(each, "structured_query")]
        whole = [query for query in queries if query.limit != wrappers_pb2.Int32Value(value=1)]
        return spy.total, len(whole)

    assert cost()[1] > 0
    migrate_jobs(store)
    calls, whole = cost()
    ours = Grid.create(store, 40, job_id="ours")
    ours.write("ingest", 0, 5)
    spy.clear()
    manager = Manager.open(store, "ours")
    assert manager.summary(indexes=False).running == 1
    assert manager.get_state().task_index == 1
    assert whole == 0
    assert calls <= spy.total


def test_a_migrated_job_settles_is_watched_and_cancelled(store: FirestoreStore) -> None:
    migrate_jobs(store)
    with listening(Manager.open(store, "go").subscribe(until_settled=True)) as events:
        seen = [next(events) for _ in range(36)]
        assert all(event.replay for event in seen)
        for row in range(30, 40):
            with Manager.open(store, "go", task_index=row) as manager:
                assert manager.begin("ingest") == 1
                assert manager.set_state("ingest", Status.FINISHED).version == (4 if row < 36 else 1) + 1
        assert {event.state.task_index for event in events} == set(range(30, 40))
    assert Manager.open(store, "go").get_state().finished
    grid = Grid(store, store.get_job(JobKey("go")).ref)
    grid.cancel()
    assert grid.begin("other", 0).verdict.value == "cancelled"


def test_a_migrated_job_is_collected_when_idle(store: FirestoreStore, documents: Documents) -> None:
    migrate_jobs(store)
    job = store.get_job(JobKey("go"))
    assert (job.last_activity > STAMP, job.created_at > STAMP) == (True, True)
    while store.now() - job.last_activity < 10_000:
        pass
    assert collect_garbage(store, tombstone_age="30d", delete_age="90d").scanned == 0
    assert collect_garbage(store, tombstone_age=0.002, delete_age=0.004).deleted == 1
    assert purge(store) == 0
    assert documents.ids("jobs/go/states") == []


def test_a_migrated_job_marked_deleted_stays_tombstoned(store: FirestoreStore, documents: Documents) -> None:
    documents.put("jobs/go", numTasks=40, deleted=True, schemaVersion=1)
    migrate_jobs(store)
    assert collect_garbage(store, tombstone_age="30d", delete_age="90d").revived == 0
    assert documents.get("jobs/go")["deleted"] is True
    assert store.get_job(JobKey("go")).tombstoned_at is not None


def test_documents_of_early_releases_of_the_module_are_migrated(store: FirestoreStore, documents: Documents) -> None:
    documents.put("jobs/bare", numTasks=1, deleted=False)
    documents.put("jobs/bare/states/a:0", taskID=0, tag="a", status=5)
    documents.put("jobs/bare/states/notes", text="not a state")
    assert migrate_jobs(store, job_id="bare").states == 1
    state = Manager.open(store, "bare").get_state("a", 0)
    assert (state.status, state.version, bool(state.event_id)) == (5, 1, True)
    assert documents.get("jobs/bare/states/notes") == {"text": "not a state"}


def test_a_writer_with_a_cached_job_is_fenced_by_a_migration(
    store: FirestoreStore, documents: Documents, firestore_emulator: str
) -> None:
    """The writer read the job before the migration. It writes a new cell and a cell that it wrote before."""
    stale = Manager.open(store, "go", task_index=30), Manager.open(store, "go", task_index=39)
    for manager in stale:
        manager.set_state("ingest", 51)
    with FirestoreStore(documents.address) as other:
        job = other.get_job(JobKey("go"))
        other.adopt_job(job.ref, "f" * 16)
        for manager in stale:
            for tag in ("ingest", "other"):
                with pytest.raises(JobNotFound):
                    manager.set_state(tag, 52)
        assert migrate_jobs(other).states == 37
    assert "other:39" not in documents.ids("jobs/go/states")
    manager = Manager.open(store, "go", task_index=30)
    assert manager.get_state("ingest", 30).status == 51
    assert manager.set_state("ingest", 52).version == 5


def test_a_dry_run_counts_the_states_to_migrate(store: FirestoreStore, documents: Documents) -> None:
    before = documents.get("jobs/go")
    assert migrate_jobs(store, dry_run=True).states == 36
    assert documents.get("jobs/go") == before


def test_large_states_are_rewritten_in_several_commits(store: FirestoreStore) -> None:
    grid = Grid.create(store, 200, job_id="large")
    for row in range(200):
        grid.write("a", row, 5)
    for length in (60_000, 59_000):  # 12 MB of messages; Firestore takes 10 MiB at once
        found = list(store.outdated_cells(grid.ref, 99))
        text = [replace(each, cell=replace(each.cell, message="x" * length)) for each in found]
        assert store.rewrite_cells(grid.ref, text) == 200
    assert len(grid.cell("a", 199).message or "") == 59_000


def test_a_scheduled_migration_skips_other_programs_jobs(store: FirestoreStore, documents: Documents) -> None:
    before = documents.get("jobs/go")
    assert migrate_jobs(store, foreign=False).skipped == {Skip.FOREIGN.value: 1}
    assert documents.get("jobs/go") == before


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_migration_commit_whose_response_is_lost_is_applied_once(
    store: FirestoreStore, spy: Spy, when: str, number: int
) -> None:
    """The three commits write the job's incarnation, its states and its schema."""
    commits = iter(range(100))

    def lose(method: str, _: Any) -> tuple[str, grpc.StatusCode] | None:
        lost = method == "Commit" and next(commits) == number
        return (when, grpc.StatusCode.UNAVAILABLE) if lost else None

    spy.fault = lose
    migrate_jobs(store)
    spy.fault = lambda method, request: None
    job = store.get_job(JobKey("go"))
    assert job.schema == SCHEMA_VERSION
    (column,) = store.column_summaries(job.ref)[1]
    assert column.tally == store.column_summaries(job.ref, indexes=True)[1][0].tally
    assert (column.tally.finished, column.tally.running, column.tally.failed) == (30, 5, 1)


def test_states_written_during_a_batch_are_migrated_one_by_one(store: FirestoreStore, documents: Documents) -> None:
    """Nothing fences a Go program that keeps writing; its last write before the schema stamp is kept."""

    class InterferingStore(WrappedStore):
        remaining = 2

        def rewrite_cells(self, ref: Any, cells: Any) -> int:
            if self.remaining:
                self.remaining -= 1
                documents.put_all(go_state("ingest", 31, 60 + self.remaining, version=4))
            return super().rewrite_cells(ref, cells)

    assert migrate_jobs(InterferingStore(store)).states == 36
    job = store.get_job(JobKey("go"))
    assert Grid(store, job.ref).cell("ingest", 31).status == 60
    assert store.column_summaries(job.ref)[1][0].tally == store.column_summaries(job.ref, indexes=True)[1][0].tally


def test_readers_of_a_partly_migrated_job_see_all_its_states(store: FirestoreStore) -> None:
    reads: list[Callable[[Manager], Any]] = [
        lambda manager: replace(manager.summary(), lowest=None),
        lambda manager: replace(manager.summary(indexes=False), lowest=None).failed,
        lambda manager: replace(manager.get_state(), schema_version=0),
        lambda manager: replace(manager.get_state("ingest"), schema_version=0),
        lambda manager: manager.get_state(task_index=35).status,
        lambda manager: manager.get_state("ingest", 31).status,
        lambda manager: [state.version for state in manager.list_states()],
    ]
    before = [read(Manager.open(store, "go")) for read in reads]

    class CheckingStore(WrappedStore):
        def calling(self, method: str, call: Callable[[], Any]) -> Any:
            answer = call()
            assert [read(Manager.open(store, "go")) for read in reads] == before, method
            return answer

        def rewrite_cells(self, ref: Any, cells: Any) -> int:
            return sum(super(CheckingStore, self).rewrite_cells(ref, [each]) for each in cells)

    assert migrate_jobs(CheckingStore(store)).states == 36


def test_several_writers_share_a_job_that_is_not_migrated(store: FirestoreStore) -> None:
    managers = [Manager.open(store, "go", task_index=row) for row in range(30, 36)]

    def write(manager: Manager) -> int:
        return [manager.set_state("ingest", 60 + number).version for number in range(10)][-1]

    with ThreadPoolExecutor(len(managers)) as pool:
        assert list(pool.map(write, managers)) == [13] * 6
