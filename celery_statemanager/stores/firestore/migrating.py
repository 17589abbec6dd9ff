"""Jobs of another program that become ours, and cells that are brought to a later layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from celery_statemanager.records import JobRecord, JobRef, KeptCell
from celery_statemanager.stores.firestore import requests, tallies
from celery_statemanager.stores.firestore.database import Database, Found
from celery_statemanager.stores.firestore.documents import (
    INDEX_FIELDS,
    Known,
    cell_fields,
    cell_in,
    is_ours,
    job_fields,
)
from celery_statemanager.stores.firestore.jobs import Jobs
from celery_statemanager.stores.firestore.trouble import Refused, Transient
from celery_statemanager.stores.firestore.values import Moment, microseconds

AT_ONCE = 200
"""Cells of one commit, which has as many writes again for their tallies at the most: 500 are known to be safe."""


def adopt(database: Database, jobs: Jobs, ref: JobRef, incarnation: str) -> JobRecord:
    """Give another program's job an incarnation and our other fields. Raises: JobNotFound."""
    deadline, name = database.deadline(), database.names.job(ref.key)
    while True:
        document = database.get([name], deadline).documents.get(name)
        known = jobs.read(ref.key, document)
        if document is None or known.job.incarnation:
            return known.job
        fields = job_fields(_adopted(known.job, document, incarnation, database.now()), [], 0)
        try:
            database.commit([requests.touch(name, fields, known.stamp)], deadline)
        except Refused:
            continue
        except Transient as error:
            deadline.pause(error)


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


def outdated(database: Database, job: JobRecord, below: int) -> Iterator[KeptCell]:
    """Give the cells of an earlier layout, and those that another program wrote."""
    parents = [database.names.job(job.key)] + [database.names.run(job.ref)] * bool(job.incarnation)
    for parent in parents:
        for document in database.pages(parent, "states"):
            fields = document.fields
            tag, row, cell = fields.get("tag"), fields.get("taskID"), cell_in(fields, job)
            if cell is None or cell.schema_version >= below or not isinstance(tag, str) or not isinstance(row, int):
                continue
            yield KeptCell(tag, row, cell, Known(cell, document.stamp, counted=is_ours(fields, job)))


def rewrite(database: Database, job: JobRecord, cells: Sequence[KeptCell]) -> int:
    """Replace cells that are still as they were found, many in one commit, and fewer where that does not hold."""
    left = iter(cells)
    return sum(_rewrite(database, job, some) for some in iter(lambda: list(islice(left, AT_ONCE)), []))


def _rewrite(database: Database, job: JobRecord, cells: list[KeptCell]) -> int:
    changes = tallies.changes(job, (((each.tag, each.task_index), _before(each), each.cell) for each in cells))
    writes = [_cell_write(database, job, each) for each in cells]
    for (tag, shard), change in changes.items():
        name = database.names.tally(job.ref, tag, shard)
        writes.append(requests.add(name, tallies.fields_of(job, tag), change._asdict()))
    try:
        database.insist(writes, database.deadline())
    except Refused:
        half = len(cells) // 2
        return _rewrite(database, job, cells[:half]) + _rewrite(database, job, cells[half:]) if half else 0
    return len(cells)


def _before(found: KeptCell) -> Any:
    return found.mark.cell if found.mark.counted else None


def _cell_write(database: Database, job: JobRecord, found: KeptCell) -> Any:
    """Set our fields and leave the rest: another program's payload may hold what ours cannot say."""
    new, known = found.cell, found.mark
    place = found.tag, found.task_index
    fields = cell_fields(job, *place, new, collection=database.names.address.collection)
    fields["beganAt"] = Moment(new.began_at) if new.began_at else None
    gone = {*INDEX_FIELDS, "payloadJSON"} - fields.keys()
    if new.payload == known.cell.payload:
        fields = {name: value for name, value in fields.items() if name not in {"payload", "payloadJSON"}}
        gone.discard("payloadJSON")
    return requests.touch(database.names.cell(job.ref, *place), fields, known.stamp, without=sorted(gone))
