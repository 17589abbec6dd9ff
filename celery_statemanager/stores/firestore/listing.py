"""Lists: of a job's cells, of jobs, of open attempts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from celery_statemanager.codec import compact
from celery_statemanager.models import Scope
from celery_statemanager.records import Cell, JobKey, JobRecord, JobRef, OpenAttempt, Page
from celery_statemanager.stores.firestore import requests
from celery_statemanager.stores.firestore.database import Database, Found
from celery_statemanager.stores.firestore.documents import cell_in, cell_of, job_of
from celery_statemanager.stores.firestore.names import cell_id_of
from celery_statemanager.stores.firestore.requests import Reference
from celery_statemanager.stores.firestore.values import Moment

JOBS_AT_ONCE = 100


def filters_of(names_job: str, scope: Scope) -> tuple[requests.Filter, ...]:
    """Give the filters of a scope: a column is a range of names, which needs no index."""
    if scope.task_index is not None:
        return (("taskID", "==", scope.task_index),)
    if scope.tag is None:
        return ()
    first = f"{names_job}/states/{cell_id_of(scope.tag, 0)[:-1]}"
    return ("__name__", ">=", Reference(first + "0")), ("__name__", "<", Reference(first + ";"))


def cells(database: Database, job: JobRecord, scope: Scope, at: Any = None) -> Iterator[tuple[str, int, Cell]]:
    """Read the written cells of a scope, in no promised order; what older incarnations left is passed over."""
    parent = database.names.job(job.key)
    if scope.tag is not None and scope.task_index is not None:
        name = database.names.cell(job.ref, scope.tag, scope.task_index)
        documents: Any = database.get([name], database.deadline(), at=at).documents.values()
    else:
        documents = database.pages(parent, "states", *filters_of(parent, scope), at=at)
    for document in documents:
        found = place_in(document, job)
        if found is not None and scope.holds(*found[:2]) and found[1] >= 0:
            yield found


def place_in(document: Found, job: JobRecord) -> tuple[str, int, Cell] | None:
    """Read a cell's document; None if it belongs to another incarnation or is no cell's."""
    fields = document.fields
    tag, row = fields.get("tag"), fields.get("taskID")
    if not isinstance(tag, str) or not isinstance(row, int):
        return None
    cell = cell_in(fields, job)
    return None if cell is None else (tag, row, cell)


def page(
    database: Database, cursor: str | None, limit: int, *, due: bool, tombstoned: bool, idle_before: int | None
) -> Page:
    """List jobs by their documents' names or, if idle ones are asked for, by their last activity."""
    filters: list[requests.Filter] = [("due", "==", True)] * due + [("deleted", "==", True)] * tombstoned
    order: tuple[str, ...] = ("__name__",)
    if idle_before is not None:
        filters.append(("lastActivity", "<", Moment(idle_before)))
        order = ("lastActivity", "__name__")
    after = _values(database, json.loads(cursor)) if cursor else ()
    collection = database.names.address.collection
    structured = requests.select(collection, *filters, order=order, limit=limit + 1, after=after)
    found = database.query(database.names.address.root, structured, database.deadline())
    jobs = [job_of(document.fields, document.id) for document in found[:limit]]
    more = _cursor(found[limit - 1], idle=idle_before is not None) if len(found) > limit else None
    return Page([job for job in jobs if job is not None], more)


def runs(database: Database, job_id: str, limit: int) -> list[str | None]:
    """Return the run tokens of a job_id."""
    collection, root = database.names.address.collection, database.names.address.root
    structured = requests.select(collection, ("jobID", "==", job_id), limit=limit)
    found = database.query(root, structured, database.deadline())
    jobs = (job_of(document.fields, document.id) for document in found)
    return [job.run_token for job in jobs if job is not None]


def _cursor(last: Found, *, idle: bool) -> str:
    return compact([int(last.fields["lastActivity"]), last.id] if idle else [last.id])


def _values(database: Database, cursor: list[Any]) -> tuple[Any, ...]:
    *activity, last = cursor
    return (*map(Moment, activity), Reference(f"{database.names.jobs}/{last}"))


def open_attempts(database: Database) -> Iterator[OpenAttempt]:
    """Yield the open attempts of workers, page by page; those that deleted jobs left behind are passed over."""
    held = ("held", "==", database.names.address.collection)
    found = database.pages(database.names.address.root, "states", held, everywhere=True)
    inside = (document for document in found if document.name.startswith(f"{database.names.jobs}/"))
    while some := list(islice(inside, JOBS_AT_ONCE)):
        yield from _living(database, some)


def _living(database: Database, documents: list[Found]) -> Iterator[OpenAttempt]:
    refs = [_ref(document) for document in documents]
    names = {ref.key: database.names.job(ref.key) for ref in refs}
    got = database.get(names.values(), database.deadline()).documents
    for ref, document in zip(refs, documents):
        job = got.get(names[ref.key])
        if job is not None and job.fields.get("incarnation") == ref.incarnation:
            fields = document.fields
            yield OpenAttempt(ref, fields["tag"], fields["taskID"], cell_of(fields))


def _ref(document: Found) -> JobRef:
    fields = document.fields
    return JobRef(JobKey(fields["jobID"], fields.get("runToken")), fields.get("incarnation") or "")
