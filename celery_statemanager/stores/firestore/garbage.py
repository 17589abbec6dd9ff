"""Deleted jobs: gone with their one document, their other documents removed bit by bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celery_statemanager.records import JobRecord
from celery_statemanager.stores.firestore import requests
from celery_statemanager.stores.firestore.database import Database, Found
from celery_statemanager.stores.firestore.documents import KnownJob, remember
from celery_statemanager.stores.firestore.errors import PreconditionFailed

MOST_AT_ONCE = 400
MOST_EMPTIED = 20_000
GRACE = 60_000_000
"""Microseconds for which what a straggler may still leave behind is looked for."""


def discard(database: Database, known: KnownJob) -> list[Any]:
    """Give the writes that make a job gone: its document, and notes of what it leaves."""
    job = known.job
    own = [_note(database, job, job.incarnation)]
    others = [] if job.schema or not job.incarnation else [_note(database, job, "")]  # half migrated
    return [requests.delete(database.names.job(job.key), known.stamp), *own, *others]


def _note(database: Database, job: JobRecord, incarnation: str) -> Any:
    document = database.names.job(job.key).rpartition("/")[2]
    note = {"job": document, "incarnation": incarnation}
    return requests.stamp_time(f"{database.names.garbage}/{incarnation or document}", note, "deletedAt")


def purge(database: Database, emptied: dict[str, bool], limit: int) -> int:
    """Remove up to about ``limit`` documents of discarded jobs; give their number.

    Args:
        emptied: the notes of which this process has found nothing left; it looks once more before it drops them.
    """
    removed = 0
    collection = database.names.garbage.rpartition("/")[2]
    for note in database.pages(database.names.address.root, collection):
        over = database.now() - int(note.fields["deletedAt"]) > GRACE
        if note.name in emptied and not over:
            continue
        found = _purge_job(database, note, limit - removed)
        removed += found
        if removed >= limit:
            break
        remember(emptied, note.name, True, MOST_EMPTIED)
        if not found and over:
            database.retry([requests.delete(note.name)], database.deadline())
    return removed


def _purge_job(database: Database, note: Found, limit: int) -> int:
    removed = 0
    for names in _leftovers(database, note):
        while removed < limit and (found := names(min(MOST_AT_ONCE, limit - removed))):
            removed += _delete(database, found)
        if removed >= limit:
            break
    return removed


def _leftovers(database: Database, note: Found) -> Iterator[Any]:
    """Give, for each place where a job leaves documents, what finds some of them."""
    parent, incarnation = f"{database.names.jobs}/{note.fields['job']}", note.fields["incarnation"]
    if not incarnation:  # another program's job: its cells are those without an incarnation
        yield lambda limit: [each for each in database.pages(parent, "states") if "incarnation" not in each.fields][
            :limit
        ]
        return
    run = f"{parent}/runs/{incarnation}"
    yield lambda limit: _names(database, parent, "states", limit, ("incarnation", "==", incarnation))
    yield lambda limit: _names(database, run, "states", limit)
    yield lambda limit: _names(database, run, "tallies", limit)


def _names(database: Database, parent: str, collection: str, limit: int, *filters: requests.Filter) -> list[Found]:
    structured = requests.select(collection, *filters, limit=limit, fields=())
    return database.query(parent, structured, database.deadline())


def _delete(database: Database, found: list[Found]) -> int:
    """Delete documents unless a successor has written over one meanwhile: then it is not ours any more."""
    try:
        database.retry([requests.delete(each.name, each.stamp) for each in found], database.deadline())
    except PreconditionFailed:
        return 0 if len(found) == 1 else sum(_delete(database, [each]) for each in found)
    return len(found)
