"""Deletion of jobs: one commit deletes the job's document, and ``purge`` later removes what it leaves behind.

A note in ``{collection}_garbage`` identifies each deleted job or draft until its documents are removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import groupby, islice
from typing import Any

from celery_statemanager.errors import JobNotFound, StoreError, StoreUnavailable
from celery_statemanager.records import JobRecord
from celery_statemanager.stores.firestore import requests
from celery_statemanager.stores.firestore.database import Database, Document
from celery_statemanager.stores.firestore.errors import PreconditionFailed, Transient
from celery_statemanager.stores.firestore.jobs import JobDocuments
from celery_statemanager.stores.firestore.timings import in_microseconds
from celery_statemanager.stores.firestore.values import Moment, decode_fields

DELETES_AT_ONCE = 400

LARGE_AT_ONCE = {"blocks": 8, "values": 100}
"""Collections of documents that may be large, and how many of them a commit deletes. Firestore's limit is 10 MiB, and
a commit that exceeds it is split. Most values are small."""

NOTES_AT_ONCE = 100


def delete(database: Database, jobs: JobDocuments, job: JobRecord, *, if_idle: bool) -> list[Document] | None:
    """Delete a job. Return its notes for ``purge_notes``, or None if ``if_idle`` is set and the job has changed.

    Raises: JobNotFound, StoreError.
    """
    deadline = database.deadline()
    uncertain = False
    while True:
        try:
            current = jobs.current(job.ref, deadline)
        except JobNotFound:
            if uncertain:
                return []
            raise
        changed = (current.job.revision, current.job.last_activity) != (job.revision, job.last_activity)
        if if_idle and changed:
            return None
        name = database.names.job(job.key)
        notes = [note_of(database, name, job.incarnation)]
        if job.incarnation and not current.job.schema:  # half migrated: some cells have no incarnation
            notes.append(note_of(database, name, ""))
        writes = [requests.delete(name, current.update_time), *notes]
        if current.job.flow is not None:
            writes.append(requests.delete(database.names.outbox(job.ref)))
        try:
            response = database.commit(writes, deadline)
        except (PreconditionFailed, Transient) as error:
            uncertain = uncertain or isinstance(error, Transient)
            deadline.pause(error)
            continue
        return stored_notes(notes, response.write_results[1:])


def note_of(database: Database, job_name: str, incarnation: str) -> Any:
    """Build a note. Notes of earlier releases lack ``emptied``, so they are found after the grace period."""
    document_id = job_name.rpartition("/")[2]
    fields = {"job": document_id, "incarnation": incarnation, "emptied": False}
    return requests.stamp_time(f"{database.names.garbage}/{incarnation or document_id}", fields, "deletedAt")


def stored_notes(notes: list[Any], results: Any) -> list[Document]:
    """Return the documents of committed notes, given the results of their writes."""
    return [
        Document(note.update.name, decode_fields(note.update.fields), result.update_time, None)
        for note, result in zip(notes, results)
    ]


def purge(database: Database, limit: int) -> int:
    """Remove about ``limit`` documents of deleted jobs, finished notes included, and return their number.

    Each job is searched twice: as soon as possible, and again after the grace period for late writes.
    """
    removed = 0
    for over in (True, False):
        for note in _notes(database, over=over):
            removed += _purge_note(database, note, limit - removed, over=over)
            if removed >= limit:
                return removed
    return removed


def purge_notes(database: Database, notes: list[Document], limit: int) -> None:
    """Remove about ``limit`` documents of one job, given the notes of its deletion."""
    for note in notes:
        limit -= _purge_note(database, note, limit, over=False)
        if limit <= 0:
            return


def _notes(database: Database, *, over: bool) -> Iterator[Document]:
    """Yield the notes whose grace period is over, or those not searched yet, page by page.

    Processing a page removes its notes from the result of the next query.
    """
    collection = database.names.garbage.rpartition("/")[2]
    before = Moment(database.now() - in_microseconds(database.timings.purge_grace))
    wanted: requests.Filter = ("deletedAt", "<", before) if over else ("emptied", "==", False)
    while True:
        structured = requests.select(collection, wanted, limit=NOTES_AT_ONCE)
        page = database.query(database.names.address.root, structured, database.deadline())
        yield from page
        if len(page) < NOTES_AT_ONCE:
            return


def _purge_note(database: Database, note: Document, limit: int, *, over: bool) -> int:
    removed, after = _purge_job(database, note, limit)
    if after is not None and after == note.fields.get("after", ""):
        return removed
    with suppress(PreconditionFailed):  # another process purges the note too, or deleted another job of that name
        if after is not None:
            database.retry([requests.touch(note.name, {"after": after}, note.update_time)], database.deadline())
        elif over and (note.fields.get("emptied") or not note.fields.get("after")):  # this was a complete search
            database.retry([requests.delete(note.name, note.update_time)], database.deadline())
            removed += 1
        else:
            emptied = requests.touch(note.name, {"emptied": True}, note.update_time, without=["after"])
            database.retry([emptied], database.deadline())
    return removed


def _purge_job(database: Database, note: Document, limit: int) -> tuple[int, str | None]:
    """Remove documents of one job.

    Returns: their number, and the document after which to continue: None when none is left, "" to start over.
    """
    if not note.fields["incarnation"]:
        return _purge_foreign(database, note, limit)
    removed = 0
    for find in _searches(database, note):
        more = True
        while more:
            wanted = min(DELETES_AT_ONCE, limit - removed)
            page = find(wanted)
            removed += sum(_delete(database, batch) for batch in _batches(page))
            if removed >= limit:
                return removed, ""
            more = len(page) == wanted
    return removed, None


def _searches(database: Database, note: Document) -> tuple[Callable[[int], list[Document]], ...]:
    """Return functions that find the names of up to ``limit`` documents of a job: cells of the grid, and all others."""
    parent, incarnation = f"{database.names.jobs}/{note.fields['job']}", note.fields["incarnation"]
    own = ("incarnation", "==", incarnation)

    def cells(limit: int) -> list[Document]:
        structured = requests.select("states", own, limit=limit, fields=())
        return database.query(parent, structured, database.deadline())

    def others(limit: int) -> list[Document]:
        structured = requests.select("", limit=limit, fields=(), everywhere=True)
        return database.query(f"{parent}/runs/{incarnation}", structured, database.deadline())

    return cells, others


def _batches(documents: list[Document]) -> Iterator[list[Document]]:
    """Yield the documents, which are ordered by collection, in parts that a commit can delete."""
    for collection, group in groupby(documents, lambda each: each.name.rsplit("/", 2)[1]):
        while batch := list(islice(group, LARGE_AT_ONCE.get(collection, DELETES_AT_ONCE))):
            yield batch


def _purge_foreign(database: Database, note: Document, limit: int) -> tuple[int, str | None]:
    """Remove the states of another program's job. They have no incarnation, and no query selects a missing field.

    All states under the job's name are read page by page, including those of its successors. The note stores the
    position, so that each state is read about once, however many calls the purge takes.
    """
    parent = f"{database.names.jobs}/{note.fields['job']}"
    removed, after = 0, note.fields.get("after", "")
    while removed < limit:
        start = (requests.Reference(after),) if after else ()
        structured = requests.select(
            "states", order=("__name__",), limit=DELETES_AT_ONCE, fields=("incarnation",), after=start
        )
        page = database.query(parent, structured, database.deadline())
        foreign = [each for each in page if "incarnation" not in each.fields]
        deleted = foreign[: limit - removed]
        removed += _delete(database, deleted) if deleted else 0
        if len(deleted) < len(foreign):
            return removed, deleted[-1].name
        if len(page) < DELETES_AT_ONCE:
            return removed, None
        after = page[-1].name
    return removed, after


def _delete(database: Database, documents: list[Document]) -> int:
    """Delete documents and return their number. A document that a successor has overwritten is kept.

    A commit that is rejected is split in halves, because it may be too large.
    """
    try:
        writes = [requests.delete(each.name, each.update_time) for each in documents]
        database.retry(writes, database.deadline())
    except StoreUnavailable:
        raise
    except StoreError as error:
        if len(documents) > 1:
            half = len(documents) // 2
            return _delete(database, documents[:half]) + _delete(database, documents[half:])
        if not isinstance(error, PreconditionFailed):
            raise
        return 0
    return len(documents)
