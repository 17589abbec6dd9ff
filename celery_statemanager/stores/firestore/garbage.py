"""Deleted jobs: gone with their one document, their other documents removed bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from celery_statemanager.records import JobRecord
from celery_statemanager.stores.firestore import requests
from celery_statemanager.stores.firestore.database import Database, Found
from celery_statemanager.stores.firestore.documents import KnownJob
from celery_statemanager.stores.firestore.errors import PreconditionFailed
from celery_statemanager.stores.firestore.timings import in_microseconds
from celery_statemanager.stores.firestore.values import Moment, decoded

MOST_AT_ONCE = 400
NOTES_AT_ONCE = 100


def discard(database: Database, known: KnownJob) -> list[Any]:
    """Return the writes that make a job gone: its document, and notes of what it leaves."""
    job = known.job
    own = [_note(database, job, job.incarnation)]
    others = [] if job.schema or not job.incarnation else [_note(database, job, "")]  # half migrated
    return [requests.delete(database.names.job(job.key), known.stamp), *own, *others]


def _note(database: Database, job: JobRecord, incarnation: str) -> Any:
    """Note a deleted job. A note of an earlier release has no ``emptied``, and is found after ``straggler_grace``."""
    document = database.names.job(job.key).rpartition("/")[2]
    note = {"job": document, "incarnation": incarnation, "emptied": False}
    return requests.stamp_time(f"{database.names.garbage}/{incarnation or document}", note, "deletedAt")


def purge(database: Database, limit: int) -> int:
    """Remove up to about ``limit`` documents of discarded jobs, and notes that are done with; return their number.

    A job's leftovers are looked for twice: as soon as possible, and once stragglers have had their time.
    """
    removed = 0
    for over in (True, False):
        for note in _notes(database, over=over):
            removed += _purge_noted(database, note, limit - removed, over=over)
            if removed >= limit:
                return removed
    return removed


def purge_discarded(database: Database, writes: list[Any], results: Any, limit: int) -> None:
    """Remove up to about ``limit`` documents of one job.

    Args:
        writes, results: the commit that discarded it.
    """
    for write, result in zip(writes[1:], results[1:]):
        note = Found(write.update.name, decoded(write.update.fields), result.update_time, None)
        limit -= _purge_noted(database, note, limit, over=False)
        if limit <= 0:
            return


def _notes(database: Database, *, over: bool) -> Iterator[Found]:
    """Yield the notes to look at, page by page; the look at a page takes its notes out of what is found next."""
    collection = database.names.garbage.rpartition("/")[2]
    before = Moment(database.now() - in_microseconds(database.timings.straggler_grace))
    wanted: requests.Filter = ("deletedAt", "<", before) if over else ("emptied", "==", False)
    while True:
        structured = requests.select(collection, wanted, limit=NOTES_AT_ONCE)
        page = database.query(database.names.address.root, structured, database.deadline())
        yield from page
        if len(page) < NOTES_AT_ONCE:
            return


def _purge_noted(database: Database, note: Found, limit: int, *, over: bool) -> int:
    removed, after = _purge_job(database, note, limit)
    if after is not None and after == note.fields.get("after", ""):
        return removed
    with suppress(PreconditionFailed):  # another process looks at it too, or a job of that name was deleted again
        if after is not None:
            database.retry([requests.touch(note.name, {"after": after}, note.stamp)], database.deadline())
        elif over and (note.fields.get("emptied") or not note.fields.get("after")):  # nothing was seen before
            database.retry([requests.delete(note.name, note.stamp)], database.deadline())
            removed += 1
        else:
            done = requests.touch(note.name, {"emptied": True}, note.stamp, without=["after"])
            database.retry([done], database.deadline())
    return removed


def _purge_job(database: Database, note: Found, limit: int) -> tuple[int, str | None]:
    """Remove documents of one job.

    Returns: their number, and the document after which to go on; None when none is left, "" to begin anew.
    """
    if not note.fields["incarnation"]:
        return _purge_foreign(database, note, limit)
    removed = 0
    for find in _leftovers(database, note):
        more = True
        while more:
            wanted = min(MOST_AT_ONCE, limit - removed)
            found = find(wanted)
            removed += _delete(database, found) if found else 0
            if removed >= limit:
                return removed, ""
            more = len(found) == wanted
    return removed, None


def _leftovers(database: Database, note: Found) -> Iterator[Callable[[int], list[Found]]]:
    """Yield, for each place where a job leaves documents, what finds some of them."""
    parent, incarnation = f"{database.names.jobs}/{note.fields['job']}", note.fields["incarnation"]
    run = f"{parent}/runs/{incarnation}"
    yield lambda limit: _find(database, parent, "states", limit, ("incarnation", "==", incarnation))
    yield lambda limit: _find(database, run, "states", limit)
    yield lambda limit: _find(database, run, "tallies", limit)


def _purge_foreign(database: Database, note: Found, limit: int) -> tuple[int, str | None]:
    """Remove states of another program's job: those without an incarnation, which no query finds.

    All states under the job's name are read, page by page, those of its successors too. The place that was reached is
    kept with the note, so each is read about once however many calls this takes.
    """
    parent = f"{database.names.jobs}/{note.fields['job']}"
    removed, after = 0, note.fields.get("after", "")
    while removed < limit:
        start = (requests.Reference(after),) if after else ()
        structured = requests.select(
            "states", order=("__name__",), limit=MOST_AT_ONCE, fields=("incarnation",), after=start
        )
        page = database.query(parent, structured, database.deadline())
        theirs = [each for each in page if "incarnation" not in each.fields]
        some = theirs[: limit - removed]
        removed += _delete(database, some) if some else 0
        if len(some) < len(theirs):
            return removed, some[-1].name
        if len(page) < MOST_AT_ONCE:
            return removed, None
        after = page[-1].name
    return removed, after


def _find(database: Database, parent: str, collection: str, limit: int, *filters: requests.Filter) -> list[Found]:
    structured = requests.select(collection, *filters, limit=limit, fields=())
    return database.query(parent, structured, database.deadline())


def _delete(database: Database, found: list[Found]) -> int:
    """Delete documents unless a successor has written over one meanwhile: then it is not ours any more."""
    try:
        database.retry([requests.delete(each.name, each.stamp) for each in found], database.deadline())
    except PreconditionFailed:
        return 0 if len(found) == 1 else sum(_delete(database, [each]) for each in found)
    return len(found)
