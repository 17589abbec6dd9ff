"""Documents as the Go module writes and reads them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from firestore_kit import Documents, listening

from celery_statemanager import JobNotFound, Manager, Status, StoreError, collect_garbage
from celery_statemanager.models import SCHEMA_VERSION, State
from celery_statemanager.records import JobKey, to_datetime
from celery_statemanager.stores.firestore import FirestoreAddress, FirestoreStore
from celery_statemanager.stores.firestore.names import cell_id_of, cell_key_of, job_id_of
from celery_statemanager.stores.firestore.tallies import shard_of
from celery_statemanager.stores.firestore.values import Moment
from celery_statemanager.testing.kit import FAILED, Grid, purge

STAMP = 1_700_000_000_123_000


@pytest.fixture
def store(firestore_emulator: str) -> Iterator[FirestoreStore]:
    with FirestoreStore(FirestoreAddress(f"test-{uuid.uuid4().hex[:12]}")) as store:
        yield store


@pytest.fixture
def documents(store: FirestoreStore) -> Documents:
    return Documents(store)


def test_a_job_has_the_path_and_field_names_of_the_go_module(store: FirestoreStore, documents: Documents) -> None:
    with Manager.create(store, "load-42", num_tasks=3, task_index=1, tags=("extract", "load")) as manager:
        state = manager.set_state("extract", 40, "page 4 of 10", {"rows": 812, "tables": ["a", "b"]}, event_id="e1")
        job, cell = documents.get("jobs/load-42"), documents.get("jobs/load-42/states/extract:1")
        shared = {name: job[name] for name in ("jobID", "numTasks", "deleted", "schemaVersion")}
        assert shared == {"jobID": "load-42", "numTasks": 3, "deleted": False, "schemaVersion": SCHEMA_VERSION}
        names = ("jobID", "taskID", "tag", "status", "message", "version", "eventID", "payload", "schemaVersion")
        assert {name: cell[name] for name in names} == {
            "jobID": "load-42",
            "taskID": 1,
            "tag": "extract",
            "status": 40,
            "message": "page 4 of 10",
            "version": 1,
            "eventID": "e1",
            "payload": {"rows": 812, "tables": ["a", "b"]},
            "schemaVersion": SCHEMA_VERSION,
        }
        assert isinstance(cell["timestamp"], Moment)
        assert to_datetime(cell["timestamp"]) == state.timestamp
        assert documents.ids("jobs") == ["load-42"]
        assert documents.ids("jobs/load-42/states") == ["extract:1"]
        manager.tombstone_job()
        assert documents.get("jobs/load-42")["deleted"] is True


def go_job(documents: Documents, job_id: str = "go", num_tasks: int = 3) -> None:
    documents.put(f"jobs/{job_id}", numTasks=num_tasks, deleted=False, schemaVersion=1)


def go_state(documents: Documents, tag: str, row: int, status: int, version: int = 1, job_id: str = "go") -> None:
    documents.put(
        f"jobs/{job_id}/states/{tag}:{row}",
        jobID=job_id,
        taskID=row,
        tag=tag,
        status=status,
        message=f"{tag} {row}",
        timestamp=Moment(STAMP + row * 1_000),
        version=version,
        eventID=f"{tag}-{row}-{version}",
        payload={"rows": row},
        schemaVersion=1,
    )


def test_a_job_of_the_go_module_can_be_read(store: FirestoreStore, documents: Documents) -> None:
    go_job(documents)
    go_state(documents, "extract", 0, 50)
    go_state(documents, "extract", 2, Status.FINISHED, version=7)
    manager = Manager.open(store, "go")
    assert (manager.num_tasks, manager.tags) == (3, ())
    written, event = to_datetime(STAMP + 2_000), "extract-2-7"
    expected = State("go", 2, "extract", Status.FINISHED, "extract 2", {"rows": 2}, written, 7, event, schema_version=1)
    assert manager.get_state("extract", 2) == expected
    assert manager.list_states() == [manager.get_state("extract", 0), expected]
    assert manager.get_state() == manager.get_state("extract") == State("go", 1, "extract")
    go_state(documents, "extract", 1, -5)
    assert manager.get_state().status == -5
    summary = manager.summary()
    assert (summary.expected, summary.running, summary.finished, summary.failed) == (3, 1, 1, 1)
    assert manager.summary(indexes=False).failed == 1
    assert [job.job_id for job in store.list_jobs().jobs] == ["go"]


def test_a_job_of_the_go_module_can_be_written_and_watched(store: FirestoreStore, documents: Documents) -> None:
    go_job(documents)
    go_state(documents, "extract", 0, 50, version=4)
    with Manager.open(store, "go", task_index=0) as manager, listening(manager.subscribe()) as events:
        assert next(events).state.version == 4
        assert manager.set_state("extract", 60).version == 5
        assert next(events).state.version == 5
        go_state(documents, "extract", 0, 70, version=6)
        assert next(events).state.status == 70
        assert manager.set_state("extract", 80).version == 7
        assert "incarnation" not in documents.get("jobs/go/states/extract:0")
        assert manager.tombstone_job()
        assert documents.get("jobs/go") | {"numTasks": 3, "deleted": True} == documents.get("jobs/go")


def test_a_job_of_the_go_module_can_be_deleted(store: FirestoreStore, documents: Documents) -> None:
    go_job(documents)
    for row in range(3):
        go_state(documents, "extract", row, 50)
    store.delete_job(store.get_job(JobKey("go")))
    with pytest.raises(JobNotFound):
        Manager.open(store, "go")
    assert purge(store, 2) == 3
    assert documents.ids("jobs/go/states") == []


def test_a_job_of_the_go_module_is_not_collected_because_its_last_write_is_unknown(
    store: FirestoreStore, documents: Documents
) -> None:
    go_job(documents)
    go_state(documents, "extract", 0, 50)
    assert Manager.open(store, "go").tombstone_job()
    assert collect_garbage(store, tombstone_age=0.001, delete_age=0.002).deleted == 0
    assert Manager.open(store, "go").get_state("extract", 0).status == 50


def test_a_document_that_is_not_a_job_is_skipped(store: FirestoreStore, documents: Documents) -> None:
    documents.put("jobs/other", text="not a job")
    Grid.create(store)
    assert [job.job_id for job in store.list_jobs().jobs] == ["job"]
    with pytest.raises(JobNotFound):
        store.get_job(JobKey("other"))


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (JobKey("etl-42"), "etl-42"),
        (JobKey("a:b c"), "a:b c"),
        (JobKey("a/b"), "a%2Fb"),
        (JobKey("50%"), "50%25"),
        (JobKey("."), "%2E"),
        (JobKey(".."), "%2E."),
        (JobKey("__x__"), "%5F_x__"),
        (JobKey("etl", "2026"), "etl%+2026"),
        (JobKey("__", "__"), "%5F_%+__"),
    ],
    ids=str,
)
def test_plain_names_are_used_as_ids_and_others_are_encoded(key: JobKey, expected: str) -> None:
    assert job_id_of(key) == expected


@pytest.mark.parametrize("tag", ["a", "a:b", "a/b", "%2F", "ß" * 200, "__", "😀"])
def test_a_cell_id_can_be_decoded(tag: str) -> None:
    assert cell_key_of(cell_id_of(tag, 7)) == (tag, 7)


def test_a_name_too_long_for_an_id_is_rejected_and_a_pair_is_hashed() -> None:
    assert len(job_id_of(JobKey("😀" * 200, "😀" * 200)).encode()) <= 1_500
    for encode in (lambda: job_id_of(JobKey("x" * 1_501)), lambda: cell_id_of("ß" * 750, 1)):
        with pytest.raises(StoreError, match="Firestore allows 1500"):
            encode()


def test_cells_of_an_older_incarnation_stay_invisible_and_are_purged(
    store: FirestoreStore, documents: Documents
) -> None:
    old = Grid.create(store, 2, ("a", "b"))
    old.write("a", 0, 5)
    old.write("b", 1, 5)
    store.delete_job(old.job)
    new = Grid.create(store, 2, ("a", "b"))
    assert sorted(documents.ids("jobs/job/states")) == ["a:0", "b:1"]
    assert (new.states(), new.lowest().version, new.manager().summary().not_started) == ([], 0, 4)
    assert new.write("a", 0, 7).cell.version == 1
    purge(store)
    assert documents.ids("jobs/job/states") == ["a:0"]
    assert [state.status for state in new.states()] == [7]


def test_a_payload_that_firestore_cannot_represent_is_stored_as_text(
    store: FirestoreStore, documents: Documents
) -> None:
    with Manager.create(store, "job", num_tasks=1, task_index=0) as manager:
        manager.set_state("a", 5, payload={"grid": [[1]]})
        cell = documents.get("jobs/job/states/a:0")
        assert (cell["payload"], cell["payloadJSON"]) == (None, '{"grid":[[1]]}')
        manager.set_state("a", 5, payload={"grid": [1]})
        cell = documents.get("jobs/job/states/a:0")
        assert (cell["payload"], cell.get("payloadJSON")) == ({"grid": [1]}, None)


def counted_before(documents: Documents, grid: Grid, tag: str, row: int) -> None:
    """Change the documents of a blocked cell to those of a release that counted it as failed."""
    names = grid.store._names  # type: ignore[attr-defined]
    root = documents.name("")
    cell = names.cell(grid.ref, tag, row).removeprefix(root)
    shard = names.tally(grid.ref, tag, shard_of(grid.job, row)).removeprefix(root)
    fields, counts = documents.get(cell), documents.get(shard)
    assert (fields.pop("notRun"), counts.pop("not_run")) == (True, 1)
    documents.put_all({cell: fields, shard: {**counts, "failed": counts["failed"] + 1}})


def counts_of(grid: Grid, tag: str) -> tuple[int, int, int]:
    summary = grid.manager().summary(tag, indexes=False)
    return summary.failed, summary.not_run, summary.not_started


def test_a_blocked_cell_of_an_older_release_counts_as_failed_until_it_changes(
    store: FirestoreStore, documents: Documents
) -> None:
    grid = Grid.create(store, 4, ("scan", "save"))
    for row in (0, 1):
        grid.run("scan", row, FAILED)
        counted_before(documents, grid, "save", row)
    assert counts_of(grid, "save") == (2, 0, 2)
    with FirestoreStore(store._connection.address) as other:
        grid = grid.seen_by(other)
        grid.run("scan", 2, FAILED)
        assert counts_of(grid, "save") == (2, 1, 1)
        assert str(grid.manager().summary("save").not_run_indexes) == "0-2"
        grid.begin("scan", 0, takes_over=True)
        assert counts_of(grid, "save") == (1, 1, 2)
        grid.end("scan", 0, FAILED)
        assert counts_of(grid, "save") == (1, 2, 1)


@pytest.mark.parametrize("tags", [("scan", "save"), {"scan": range(3), "save": range(2)}, None])
def test_shards_of_an_older_release_without_ended_rows_are_summed(
    store: FirestoreStore, documents: Documents, tags: Any
) -> None:
    grid = Grid.create(store, 3, tags)
    for row in range(2):
        grid.run("scan", row)
        grid.run("save", row)
    before = store.column_summaries(grid.ref)[1]
    parent = f"jobs/job/runs/{grid.ref.incarnation}/tallies"
    for shard in documents.ids(parent):
        counts = documents.get(f"{parent}/{shard}")
        assert counts.pop("rows") is not None
        documents.put(f"{parent}/{shard}", **counts)
    assert store.column_summaries(grid.ref)[1] == before
    grid.run("scan", 2)
    if not isinstance(tags, dict):
        grid.run("save", 2)
    summary = grid.manager().summary(indexes=False)
    assert summary.finished == summary.expected
    assert grid.job.settled == (tags is not None)


def test_a_migration_counts_blocked_cells_of_an_older_release_as_not_run(
    store: FirestoreStore, documents: Documents
) -> None:
    grid = Grid.create(store, 3, ("scan", "save"))
    grid.run("scan", 1, FAILED)
    counted_before(documents, grid, "save", 1)
    found = list(store.outdated_cells(grid.ref, SCHEMA_VERSION + 1))
    later = [replace(each, cell=replace(each.cell, schema_version=SCHEMA_VERSION + 1)) for each in found]
    assert store.rewrite_cells(grid.ref, later) == 2
    assert counts_of(grid, "save") == (0, 1, 2)
    grid.begin("scan", 1, takes_over=True)
    assert counts_of(grid, "save") == (0, 0, 3)
