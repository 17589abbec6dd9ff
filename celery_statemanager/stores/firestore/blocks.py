"""The messages of jobs in blocks, and the drafts to which the blocks belong until their job is created.

A document holds at most 1 MiB, so a block is stored in parts. Its first part is found by one query and names the
number of the others. It is written last, so a block that can be found is complete.

A draft is a document that exists until ``JobDocuments.create`` or ``drop`` deletes it. Only one of them can. The commit
that drops a draft also adds a note to the garbage, so that ``purge`` deletes the blocks if this process does not.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from celery_statemanager.errors import StoreUnavailable
from celery_statemanager.records import JobRef
from celery_statemanager.stores.capabilities import draft_expired
from celery_statemanager.stores.firestore import garbage, requests
from celery_statemanager.stores.firestore.database import Database
from celery_statemanager.stores.firestore.errors import PreconditionFailed
from celery_statemanager.stores.firestore.timings import in_microseconds
from celery_statemanager.stores.firestore.values import Moment

PART_SIZE = 900 * 1024
"""Bytes. Firestore's limit for a document is 1 MiB."""

PARTS_AT_ONCE = 4
"""Parts in one call, which must take less than the store's timeout on a slow network. Firestore's limit is 10 MiB."""

DRAFTS_AT_ONCE = 100

PURGED_AT_ONCE = 400
"""Documents of a dropped draft that the same call deletes. ``purge`` deletes the others."""


def add(database: Database, ref: JobRef, first: int, data: bytes, lease: float) -> None:
    """Store a block and extend the lease of its draft, which the block of row 0 creates.

    Raises: StoreError – the draft was dropped.
    """
    parts = [(at // PART_SIZE, data[at : at + PART_SIZE]) for at in range(0, max(len(data), 1), PART_SIZE)]
    names, creates = database.names, first == 0
    for at in range(0, len(parts), PARTS_AT_ONCE):
        writes = []
        for number, part in [*parts[1:], parts[0]][at : at + PARTS_AT_ONCE]:
            fields: dict[str, Any] = {"data": part} if number else {"first": first, "parts": len(parts), "data": part}
            writes.append(requests.overwrite(names.block(ref, first, number), fields))
        until = {"leaseUntil": Moment(database.now() + in_microseconds(lease))}
        draft = names.draft(ref.incarnation)
        if creates:
            writes.append(requests.overwrite(draft, {"job": names.job(ref.key).rpartition("/")[2], **until}))
        else:
            writes.append(requests.touch(draft, until))
        try:
            database.retry(writes, database.deadline())
        except PreconditionFailed:
            raise draft_expired(ref.key) from None
        creates = False


def get(database: Database, ref: JobRef, row: int) -> tuple[int, bytes] | None:
    """Return the block with the messages of a row, and the first row of the block."""
    names = database.names
    structured = requests.select("blocks", ("first", "<=", row), order=("-first",), limit=1)
    found = database.query(names.run(ref), structured, database.deadline())
    if not found:
        return None
    first, count, data = (found[0].fields[name] for name in ("first", "parts", "data"))
    others = [names.block(ref, first, number) for number in range(1, count)]
    parts = [data]
    for at in range(0, len(others), PARTS_AT_ONCE):
        wanted = others[at : at + PARTS_AT_ONCE]
        documents = database.get(wanted, database.deadline()).documents
        if len(documents) < len(wanted):
            return None  # another process is deleting the block
        parts += [documents[name].fields["data"] for name in wanted]
    return first, b"".join(parts)


def drop(database: Database, ref: JobRef) -> None:
    """Delete a draft and its blocks. Without a draft, the call has no effect."""
    _drop(database, database.names.job(ref.key), ref.incarnation)


def drop_expired(database: Database) -> int:
    """Delete the drafts whose lease has ended; return their number."""
    collection = database.names.drafts.rpartition("/")[2]
    ended = requests.select(collection, ("leaseUntil", "<=", Moment(database.now())), limit=DRAFTS_AT_ONCE)
    dropped = 0
    while True:
        page = database.query(database.names.address.root, ended, database.deadline())
        for draft in page:
            dropped += _drop(database, f"{database.names.jobs}/{draft.fields['job']}", draft.id, draft.update_time)
        if len(page) < DRAFTS_AT_ONCE:
            return dropped


def _drop(database: Database, job_name: str, incarnation: str, update_time: Any = None) -> bool:
    """Delete a draft if it exists and, if an update time is given, has it. Return whether this call deleted it.

    A delayed commit of ``add`` may create the draft again after the job was created. The blocks are kept then.
    """
    names, deadline = database.names, database.deadline()
    documents = database.get([names.draft(incarnation), job_name], deadline).documents
    draft, job = documents.get(names.draft(incarnation)), documents.get(job_name)
    if draft is None or (update_time is not None and update_time != draft.update_time):
        return False
    accepted = job is not None and job.fields.get("incarnation") == incarnation
    notes = [] if accepted else [garbage.note_of(database, job_name, incarnation)]
    try:
        response = database.retry([*notes, requests.delete(draft.name, draft.update_time)], deadline)
    except PreconditionFailed:  # accepted, extended, or dropped by a call whose answer was lost
        return False
    with suppress(StoreUnavailable):  # a later purge deletes the blocks
        garbage.purge_notes(database, garbage.stored_notes(notes, response.write_results), PURGED_AT_ONCE)
    return not accepted
