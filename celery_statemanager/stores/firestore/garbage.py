"""Deletion of jobs: one commit deletes the job's document, and ``purge`` later removes what it leaves behind.

A note in ``{collection}_garbage`` identifies each deleted job or draft until its documents are removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from celery_statemanager.errors import JobNotFound
from celery_statemanager.records import JobRecord
from celery_statemanager.stores.firestore import requests
from celery_statemanager.stores.firestore.database import Database, Document
from celery_statemanager.stores.firestore.errors import PreconditionFailed, Transient
from celery_statemanager.stores.firestore.jobs import JobDocuments
from celery_statemanager.stores.firestore.timings import in_microseconds
from celery_statemanager.stores.firestore.values import Moment, decode_fields

DELETES_AT_ONCE = 400
BLOCKS_AT_ONCE = 8
"""A commit may delete at most 10 MiB, and each document of a block takes up to 900 KiB."""

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
        notes = [note_of(database, name, job.incarnation, blocks=current.job.flow is not None)]
        if job.incarnation and not current.job.schema:  # half migrated: some cells have no incarnation
            notes.append(note_of(database, name, "", blocks=False))
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


def note_of(database: Database, job_name: str, incarnation: str, *, blocks: bool) -> Any:
    """Build a note. Notes of earlier releases lack ``emptied``, so they are found after the grace period.

    Args:
        blocks: whether the job has messages.
    """
    document_id = job_name.rpartition("/")[2]
    fields = {"job": document_id, "incarnation": incarnation, "emptied": False, "blocks": blocks}
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
    for find, at_once in _searches(database, note):
        more = True
        while more:
            wanted = min(at_once, limit - removed)
            documents = find(wanted)
            removed += _delete(database, documents) if documents else 0
            if removed >= limit:
                return removed, ""
            more = len(documents) == wanted
    return removed, None


def _searches(database: Database, note: Document) -> Iterator[tuple[Callable[[int], list[Document]], int]]:
    """Yield a function for each collection of a job, and the number of documents to delete at once.

    The function returns the names of up to ``limit`` documents of the job.
    """
    parent, incarnation = f"{database.names.jobs}/{note.fields['job']}", note.fields["incarnation"]
    run = f"{parent}/runs/{incarnation}"

    def find(parent: str, collection: str, limit: int, *filters: requests.Filter) -> list[Document]:
        structured = requests.select(collection, *filters, limit=limit, fields=())
        return database.query(parent, structured, database.deadline())

    yield lambda limit: find(parent, "states", limit, ("incarnation", "==", incarnation)), DELETES_AT_ONCE
    yield lambda limit: find(run, "states", limit), DELETES_AT_ONCE
    yield lambda limit: find(run, "tallies", limit), DELETES_AT_ONCE
    if note.fields.get("blocks"):
        yield lambda limit: find(run, "blocks", limit), BLOCKS_AT_ONCE


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
    """Delete documents and return their number. A document that a successor has overwritten is kept."""
    try:
        writes = [requests.delete(each.name, each.update_time) for each in documents]
        database.retry(writes, database.deadline())
    except PreconditionFailed:
        return 0 if len(documents) == 1 else sum(_delete(database, [each]) for each in documents)
    return len(documents)
