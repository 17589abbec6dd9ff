"""Jobs of another program that become ours, and cells that are brought to a later layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from celery_statemanager.records import Cell, JobRecord, JobRef, StoredCell
from celery_statemanager.stores.firestore import requests, tallies
from celery_statemanager.stores.firestore.database import Database, Found
from celery_statemanager.stores.firestore.documents import (
    INDEX_FIELDS,
    CachedJob,
    KnownJob,
    cell_fields,
    counted_as_failed,
    is_ours,
    job_fields,
)
from celery_statemanager.stores.firestore.errors import PreconditionFailed, Transient
from celery_statemanager.stores.firestore.jobs import Jobs
from celery_statemanager.stores.firestore.listing import place_in
from celery_statemanager.stores.firestore.values import Moment, microseconds

AT_ONCE = 100
"""Cells of one commit, which has as many writes again for their tallies at the most."""

MOST_BYTES = 5_000_000
"""Of one commit; Firestore takes 10 MiB."""


def adopt(database: Database, jobs: Jobs, ref: JobRef, incarnation: str) -> JobRecord:
    """Give another program's job an incarnation and our other fields. Raises: JobNotFound."""
    deadline, name = database.deadline(), database.names.job(ref.key)
    while True:
        document = database.get([name], deadline).documents.get(name)
        known = jobs.read(ref.key, document)
        if document is None or known.job.incarnation:
            return known.job
        job = _adopted(known.job, document, incarnation, database.now())
        try:
            (result,) = database.commit(
                [requests.touch(name, job_fields(job, [], 0), known.stamp)], deadline
            ).write_results
        except (PreconditionFailed, Transient) as error:
            deadline.pause(error)
        else:
            return jobs.remember(KnownJob(job, result.update_time, [])).job


def _adopted(job: JobRecord, document: Found, incarnation: str, now: int) -> JobRecord:
    """Give the job with our fields. Its states say when it was last written, and no index does: it is idle from now."""
    return replace(
        job,
        incarnation=incarnation,
        created_at=microseconds(document.made),
        last_activity=now,
        tombstoned_at=None if job.tombstoned_at is None else now,
        revision=job.revision + 1,
        schema_version=0,
    )


def outdated(database: Database, job: JobRecord, below: int) -> Iterator[StoredCell]:
    """Give the cells of an earlier layout, and those that another program wrote."""
    parents = [database.names.job(job.key)] + [database.names.run(job.ref)] * (job.schema > 0)
    for parent in parents:
        for document in database.pages(parent, "states"):
            found = place_in(document, job)
            if found is None:
                continue
            tag, row, cell = found
            if not document.fields.get("incarnation"):  # its number is of the other program's counting
                cell = replace(cell, schema_version=0)
            if cell.schema_version < below:
                yield StoredCell(tag, row, cell, _mark(job, cell, document))


def rewrite(database: Database, job: JobRecord, cells: Sequence[StoredCell]) -> int:
    """Replace cells that are still as they were found, many in one commit, and fewer where that does not hold."""
    left = iter(cells)
    return sum(_rewrite(database, job, some) for some in iter(lambda: list(islice(left, AT_ONCE)), []))


def _rewrite(database: Database, job: JobRecord, cells: list[StoredCell]) -> int:
    changes = tallies.changes(job, (((each.tag, each.task_index), each.mark.as_counted(), each.cell) for each in cells))
    writes = [_cell_write(database, job, each) for each in cells]
    for (tag, shard), change in changes.items():
        name = database.names.tally(job.ref, tag, shard)
        writes.append(requests.add(name, tallies.fields_of(job, tag), change._asdict()))
    half = len(cells) // 2
    if not half or sum(each.ByteSize() for each in writes) <= MOST_BYTES:
        try:
            database.retry(writes, database.deadline())
        except PreconditionFailed:
            pass
        else:
            return len(cells)
    return _rewrite(database, job, cells[:half]) + _rewrite(database, job, cells[half:]) if half else 0


def _mark(job: JobRecord, cell: Cell, document: Found) -> CachedJob:
    fields = document.fields
    as_failed = counted_as_failed(fields)
    return CachedJob(cell, document.stamp, counted=is_ours(fields, job), counted_as_failed=as_failed)


def _cell_write(database: Database, job: JobRecord, found: StoredCell) -> Any:
    """Set our fields and leave the rest: another program's payload may hold what ours cannot say."""
    new, known = found.cell, found.mark
    place = found.tag, found.task_index
    fields = cell_fields(job, *place, new, collection=database.names.address.collection)
    fields["beganAt"] = Moment(new.began_at) if new.began_at else None
    gone = {*INDEX_FIELDS, "payloadJSON"} - fields.keys()
    same = {name for name in ("message", "kept") if getattr(new, name) == getattr(known.cell, name)}
    if new.payload == known.cell.payload:
        same |= {"payload", "payloadJSON"}
    fields = {name: value for name, value in fields.items() if name not in same}
    return requests.touch(database.names.cell(job.ref, *place), fields, known.stamp, without=sorted(gone - same))
