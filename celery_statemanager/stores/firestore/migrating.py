"""Migration: adoption of another program's jobs, and rewriting of cells in a later layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from celery_statemanager.records import JobRecord, JobRef, StoredCell
from celery_statemanager.stores.firestore import requests, tallies
from celery_statemanager.stores.firestore.database import Database
from celery_statemanager.stores.firestore.documents import (
    INDEX_FIELDS,
    CellDocument,
    JobDocument,
    cell_fields,
    counted_as_failed,
    is_ours,
    job_fields,
)
from celery_statemanager.stores.firestore.errors import PreconditionFailed, Transient
from celery_statemanager.stores.firestore.jobs import JobDocuments
from celery_statemanager.stores.firestore.listing import keyed_cell
from celery_statemanager.stores.firestore.values import Moment, microseconds

CELLS_AT_ONCE = 100
"""Cells in one commit, which contains at most as many writes of tallies again."""

MAX_COMMIT_SIZE = 5_000_000
"""Bytes. Firestore's limit is 10 MiB."""


def adopt(database: Database, jobs: JobDocuments, ref: JobRef, incarnation: str) -> JobRecord:
    """Set the incarnation and our other fields in another program's job. Raises: JobNotFound."""
    deadline, name = database.deadline(), database.names.job(ref.key)
    while True:
        document = database.get([name], deadline).documents.get(name)
        current = jobs.decode(ref.key, document)
        if document is None or current.job.incarnation:
            return current.job
        now = database.now()
        adopted = replace(
            current.job,
            incarnation=incarnation,
            created_at=microseconds(document.create_time),
            last_activity=now,  # no index finds the latest timestamp of its states
            tombstoned_at=None if current.job.tombstoned_at is None else now,
            revision=current.job.revision + 1,
            schema_version=0,
        )
        write = requests.touch(name, job_fields(adopted, [], 0), current.update_time)
        try:
            (result,) = database.commit([write], deadline).write_results
        except (PreconditionFailed, Transient) as error:
            deadline.pause(error)
        else:
            return jobs.remember(JobDocument(adopted, result.update_time, [])).job


def outdated(database: Database, job: JobRecord, below: int) -> Iterator[StoredCell]:
    """Yield the cells of an earlier layout and those of another program."""
    parents = [database.names.job(job.key)] + [database.names.run(job.ref)] * (job.schema > 0)
    for parent in parents:
        for document in database.pages(parent, "states"):
            entry = keyed_cell(document, job)
            if entry is None:
                continue
            (tag, row, cell), fields = entry, document.fields
            if not fields.get("incarnation"):  # another program numbers its schema versions differently
                cell = replace(cell, schema_version=0)
            if cell.schema_version < below:
                mark = CellDocument(
                    cell,
                    document.update_time,
                    counted=is_ours(fields, job),
                    counted_as_failed=counted_as_failed(fields),
                )
                yield StoredCell(tag, row, cell, mark)


def rewrite(database: Database, job: JobRecord, cells: Sequence[StoredCell]) -> int:
    """Replace the cells that have not changed since they were read, and return their number."""
    left = iter(cells)
    return sum(_rewrite(database, job, chunk) for chunk in iter(lambda: list(islice(left, CELLS_AT_ONCE)), []))


def _rewrite(database: Database, job: JobRecord, cells: list[StoredCell]) -> int:
    """Replace cells in one commit. If it is too large or a cell has changed, split it in halves."""
    puts = (((each.tag, each.task_index), each.mark.as_counted(), each.cell) for each in cells)
    writes = [_cell_write(database, job, each) for each in cells]
    for (tag, shard), change in tallies.changes(job, puts).items():
        name = database.names.tally(job.ref, tag, shard)
        writes.append(requests.add(name, tallies.fields_of(job, tag), change._asdict()))
    half = len(cells) // 2
    if not half or sum(each.ByteSize() for each in writes) <= MAX_COMMIT_SIZE:
        try:
            database.retry(writes, database.deadline())
        except PreconditionFailed:
            pass
        else:
            return len(cells)
    return _rewrite(database, job, cells[:half]) + _rewrite(database, job, cells[half:]) if half else 0


def _cell_write(database: Database, job: JobRecord, stored: StoredCell) -> Any:
    """Set our fields whose content changes. Another program's payload may contain values that JSON cannot represent."""
    new, mark = stored.cell, stored.mark
    key = stored.tag, stored.task_index
    fields = cell_fields(job, *key, new, collection=database.names.address.collection)
    fields["beganAt"] = Moment(new.began_at) if new.began_at else None
    removed = {*INDEX_FIELDS, "payloadJSON"} - fields.keys()
    unchanged = {name for name in ("message", "kept") if getattr(new, name) == getattr(mark.cell, name)}
    if new.payload == mark.cell.payload:
        unchanged |= {"payload", "payloadJSON"}
    fields = {name: value for name, value in fields.items() if name not in unchanged}
    without = sorted(removed - unchanged)
    return requests.touch(database.names.cell(job.ref, *key), fields, mark.update_time, without=without)
