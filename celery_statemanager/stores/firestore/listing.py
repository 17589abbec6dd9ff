"""Lists of a job's cells, of jobs, and of open attempts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from celery_statemanager.codec import compact
from celery_statemanager.limits import invalid_cursor, parse_cursor
from celery_statemanager.models import Scope
from celery_statemanager.records import Cell, JobKey, JobRecord, JobRef, Listed, OpenAttempt, Page
from celery_statemanager.stores.firestore import requests
from celery_statemanager.stores.firestore.database import Database, Document
from celery_statemanager.stores.firestore.documents import cell_in, cell_of, job_of
from celery_statemanager.stores.firestore.names import cell_id_of
from celery_statemanager.stores.firestore.requests import Reference
from celery_statemanager.stores.firestore.values import Moment

ATTEMPTS_AT_ONCE = 100
"""Open attempts whose jobs are read in a single call."""


def filters_of(job_name: str, scope: Scope) -> tuple[requests.Filter, ...]:
    """Return the filters of a scope. A column is a range of document names, which needs no index."""
    if scope.task_index is not None:
        return (("taskID", "==", scope.task_index),)
    if scope.tag is None:
        return ()
    prefix = f"{job_name}/states/{cell_id_of(scope.tag, 0)[:-1]}"
    return ("__name__", ">=", Reference(prefix + "0")), ("__name__", "<", Reference(prefix + ";"))


def cells(database: Database, job: JobRecord, scope: Scope, at: Any = None) -> Iterator[tuple[str, int, Cell]]:
    """Yield the written cells of a scope in any order, without those of older incarnations."""
    parent = database.names.job(job.key)
    if scope.tag is not None and scope.task_index is not None:
        name = database.names.cell(job.ref, scope.tag, scope.task_index)
        documents: Any = database.get([name], database.deadline(), at=at).documents.values()
    else:
        documents = database.pages(parent, "states", *filters_of(parent, scope), at=at)
    for document in documents:
        entry = keyed_cell(document, job)
        if entry is not None and scope.holds(*entry[:2]) and entry[1] >= 0:
            yield entry


def keyed_cell(document: Document, job: JobRecord) -> tuple[str, int, Cell] | None:
    """Decode a cell with its tag and row. Return None if it is not a cell of this incarnation."""
    fields = document.fields
    tag, row = fields.get("tag"), fields.get("taskID")
    if not isinstance(tag, str) or not isinstance(row, int):
        return None
    cell = cell_in(fields, job)
    return None if cell is None else (tag, row, cell)


def page(
    database: Database, cursor: str | None, limit: int, *, due: bool, tombstoned: bool, idle_before: int | None
) -> Page:
    """Return a page of jobs, ordered by document name or, with ``idle_before``, by last activity."""
    filters: list[requests.Filter] = [("due", "==", True)] * due + [("deleted", "==", True)] * tombstoned
    order: tuple[str, ...] = ("__name__",)
    if idle_before is not None:
        filters.append(("lastActivity", "<", Moment(idle_before)))
        order = ("lastActivity", "__name__")
    after: tuple[Any, ...] = ()
    if cursor:
        *activity, last_id = json.loads(cursor)
        after = (*map(Moment, activity), Reference(f"{database.names.jobs}/{last_id}"))
    collection = database.names.address.collection
    structured = requests.select(collection, *filters, order=order, limit=limit + 1, after=after)
    documents = database.query(database.names.address.root, structured, database.deadline())
    jobs = [job_of(document.fields, document.id) for document in documents[:limit]]
    next_cursor = None
    if len(documents) > limit:
        last = documents[limit - 1]
        next_cursor = compact([last.id] if idle_before is None else [int(last.fields["lastActivity"]), last.id])
    return Page([job for job in jobs if job is not None], next_cursor)


def newest_jobs(database: Database, cursor: str | None, limit: int) -> list[Listed]:
    """Return jobs as ``Store.newest_jobs`` describes. Jobs of another program are listed once they are migrated."""
    names = database.names
    newest: list[Listed] = []
    while (missing := limit - len(newest)) > 0:
        after: tuple[Any, ...] = ()
        if cursor is not None:
            created_at, last_id = parse_cursor(cursor)
            if not last_id or "/" in last_id:
                raise invalid_cursor(cursor)
            after = Moment(created_at), Reference(f"{names.jobs}/{last_id}")
        order = ("-createdAt", "-__name__")
        only_times = ("createdAt", ">", Moment(0))
        structured = requests.select(names.address.collection, only_times, order=order, limit=missing, after=after)
        documents = database.query(names.address.root, structured, database.deadline())
        for document in documents:
            cursor, job = f"{int(document.fields['createdAt'])} {document.id}", job_of(document.fields, document.id)
            newest += [] if job is None else [Listed(job, cursor)]
        if len(documents) < missing:
            break
    return newest


def runs(database: Database, job_id: str, limit: int) -> list[str | None]:
    """Return the run tokens of the jobs with this job_id."""
    collection, root = database.names.address.collection, database.names.address.root
    structured = requests.select(collection, ("jobID", "==", job_id), limit=limit)
    documents = database.query(root, structured, database.deadline())
    jobs = (job_of(document.fields, document.id) for document in documents)
    return [job.run_token for job in jobs if job is not None]


def open_attempts(database: Database) -> Iterator[OpenAttempt]:
    """Yield the open attempts of workers, without those of deleted jobs."""
    held = ("held", "==", database.names.address.collection)
    documents = database.pages(database.names.address.root, "states", held, everywhere=True)
    ours = (document for document in documents if document.name.startswith(f"{database.names.jobs}/"))
    while chunk := list(islice(ours, ATTEMPTS_AT_ONCE)):
        refs = [
            JobRef(JobKey(fields["jobID"], fields.get("runToken")), fields.get("incarnation") or "")
            for fields in (document.fields for document in chunk)
        ]
        names = {ref.key: database.names.job(ref.key) for ref in refs}
        jobs = database.get(names.values(), database.deadline()).documents
        for ref, document in zip(refs, chunk):
            job = jobs.get(names[ref.key])
            if job is not None and job.fields.get("incarnation") == ref.incarnation:
                fields = document.fields
                yield OpenAttempt(ref, fields["tag"], fields["taskID"], cell_of(fields))
