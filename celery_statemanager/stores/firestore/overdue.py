"""The list of due jobs, and checks of overdue jobs, whose latches a dead process may have left undecided."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from typing import Any, NamedTuple

from celery_statemanager.codec import compact
from celery_statemanager.errors import JobNotFound, StoreContended, StoreError, StoreUnavailable
from celery_statemanager.records import JobRecord, Page
from celery_statemanager.stores.firestore import listing, requests
from celery_statemanager.stores.firestore.database import Database, Document
from celery_statemanager.stores.firestore.documents import job_of
from celery_statemanager.stores.firestore.errors import PreconditionFailed
from celery_statemanager.stores.firestore.jobs import JobDocuments
from celery_statemanager.stores.firestore.latches import Latches
from celery_statemanager.stores.firestore.requests import Reference
from celery_statemanager.stores.firestore.timings import in_microseconds
from celery_statemanager.stores.firestore.values import Moment

logger = logging.getLogger(__name__)

MAX_CHECKS = 10
"""Jobs checked for one page. Each check takes several round trips and has its own deadline."""

MAX_RECHECK_AFTER = 3_600 * 1_000_000
"""The longest time until the next check of a job, in microseconds. ``Timings.recheck_after`` is the shortest."""


class _OverduePosition(NamedTuple):
    """A position in the second half of a listing, which consists of the overdue jobs.

    Attributes:
        now: when that half began. Jobs that become overdue later belong to the next listing.
        after: the time and the id of the last checked job.
    """

    now: int
    after: tuple[int, str] | None = None

    @classmethod
    def from_cursor(cls, cursor: str | None) -> _OverduePosition | None:
        """Parse a cursor. Return None if it belongs to the first half."""
        value: Any = json.loads(cursor) if cursor else None
        if not isinstance(value, dict):
            return None
        return cls(value["overdue"], tuple(value["after"]) if value["after"] else None)

    def cursor(self) -> str:
        """Return the position as a cursor."""
        return compact({"overdue": self.now, "after": self.after})


def due_page(
    database: Database,
    jobs: JobDocuments,
    latches: Latches,
    cursor: str | None,
    limit: int,
    *,
    tombstoned: bool,
    idle_before: int | None,
) -> Page:
    """Return a page of due jobs. After the last of them, check the overdue jobs and list those that become due."""

    def is_wanted(job: JobRecord) -> bool:
        return not (tombstoned and job.tombstoned_at is None) and (
            idle_before is None or job.last_activity < idle_before
        )

    listed: list[JobRecord] = []
    position = _OverduePosition.from_cursor(cursor)
    if position is None:
        page = listing.page(database, cursor, limit, due=True, tombstoned=tombstoned, idle_before=idle_before)
        if page.cursor is not None:
            return page
        listed, position = page.jobs, _OverduePosition(database.now())
    most = min(limit - len(listed), MAX_CHECKS)
    if not most:
        return Page(listed, position.cursor())
    overdue = _overdue(database, position, most)
    decided = [job for job in (_check(database, jobs, latches, each) for each in overdue) if job is not None]
    listed += filter(is_wanted, decided)
    if len(overdue) < most:
        return Page(listed, None)
    last = overdue[-1]
    return Page(listed, position._replace(after=(int(last.fields["checkAfter"]), last.id)).cursor())


def _overdue(database: Database, position: _OverduePosition, limit: int) -> list[Document]:
    after: tuple[Any, ...] = ()
    if position.after:
        check_after, last_id = position.after
        after = (Moment(check_after), Reference(f"{database.names.jobs}/{last_id}"))
    structured = requests.select(
        database.names.address.collection,
        ("checkAfter", "<", Moment(position.now)),
        order=("checkAfter", "__name__"),
        limit=limit,
        after=after,
    )
    return database.query(database.names.address.root, structured, database.deadline())


def _check(database: Database, jobs: JobDocuments, latches: Latches, document: Document) -> JobRecord | None:
    """Decide the open latches of a job. Return the job if this made it due.

    A job that cannot be decided is logged and skipped, so that it does not block the others.

    Raises: StoreUnavailable – the store cannot be reached.
    """
    before = job_of(document.fields, document.id)
    if before is None:
        return None
    try:
        latches.decide(before.ref, None, database.deadline())
        current = jobs.current(before.ref, database.deadline())
        if not current.job.settled:
            now = database.now()
            shortest = in_microseconds(database.timings.recheck_after)
            later = Moment(now + min(max((now - current.job.created_at) // 4, shortest), MAX_RECHECK_AFTER))
            write = requests.touch(document.name, {"checkAfter": later}, current.update_time)
            with suppress(PreconditionFailed):  # another process changed the job and set ``checkAfter``
                database.retry([write], database.deadline())
    except (JobNotFound, StoreContended):  # deleted, or changed by other processes, which decide the latches
        return None
    except StoreUnavailable:
        raise
    except StoreError as error:
        extra = {"job_id": before.job_id}
        logger.warning("cannot decide the callbacks of job %r, will retry: %s", before.job_id, error, extra=extra)
        return None
    return current.job if current.job.due and not before.due else None
