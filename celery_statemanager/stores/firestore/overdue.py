"""Due jobs, and jobs whose latches may be undecided because the process that was to decide them died."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from typing import Any, NamedTuple

from celery_statemanager.codec import compact
from celery_statemanager.errors import JobNotFound, StoreContended, StoreError, StoreUnavailable
from celery_statemanager.records import JobRecord, Page
from celery_statemanager.stores.firestore import listing, requests
from celery_statemanager.stores.firestore.database import Database, Found
from celery_statemanager.stores.firestore.documents import job_of
from celery_statemanager.stores.firestore.errors import PreconditionFailed
from celery_statemanager.stores.firestore.jobs import Jobs
from celery_statemanager.stores.firestore.latches import Latches
from celery_statemanager.stores.firestore.requests import Reference
from celery_statemanager.stores.firestore.timings import in_microseconds
from celery_statemanager.stores.firestore.values import Moment

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 10
"""Jobs looked at for one page; each look takes some round trips, with a deadline of its own."""

LONGEST = 3_600 * 1_000_000
"""The longest time until a job is looked at again, in microseconds; ``Timings.recheck_after`` is the shortest."""


class _Place(NamedTuple):
    """Where the second half of a listing of due jobs goes on.

    Attributes:
        now: when that half began; what becomes overdue later is the next listing's.
        after: the values of the last job that was looked at, in the order of the query.
    """

    now: int
    after: tuple[int, str] | None = None

    @classmethod
    def from_cursor(cls, cursor: str | None) -> _Place | None:
        """Read a cursor; None if it is one of the first half."""
        read: Any = json.loads(cursor) if cursor else None
        return cls(read["overdue"], tuple(read["after"]) if read["after"] else None) if isinstance(read, dict) else None

    def cursor(self) -> str:
        """Return the place as a cursor."""
        return compact({"overdue": self.now, "after": self.after})


def due_page(
    database: Database,
    jobs: Jobs,
    latches: Latches,
    cursor: str | None,
    limit: int,
    *,
    tombstoned: bool,
    idle_before: int | None,
) -> Page:
    """List jobs that are due; then decide the latches of overdue jobs and list those that become due by it."""

    def is_wanted(job: JobRecord) -> bool:
        return not (tombstoned and job.tombstoned_at is None) and (
            idle_before is None or job.last_activity < idle_before
        )

    found: list[JobRecord] = []
    place = _Place.from_cursor(cursor)
    if place is None:
        page = listing.page(database, cursor, limit, due=True, tombstoned=tombstoned, idle_before=idle_before)
        if page.cursor is not None:
            return page
        found, place = page.jobs, _Place(database.now())
    most = min(limit - len(found), MOST_AT_ONCE)
    if not most:
        return Page(found, place.cursor())
    overdue = _overdue(database, place, most)
    decided = [job for job in (_look_at(database, jobs, latches, each) for each in overdue) if job is not None]
    found += filter(is_wanted, decided)
    if len(overdue) < most:
        return Page(found, None)
    last = overdue[-1]
    return Page(found, place._replace(after=(int(last.fields["checkAfter"]), last.id)).cursor())


def _overdue(database: Database, place: _Place, limit: int) -> list[Found]:
    after = (Moment(place.after[0]), Reference(f"{database.names.jobs}/{place.after[1]}")) if place.after else ()
    structured = requests.select(
        database.names.address.collection,
        ("checkAfter", "<", Moment(place.now)),
        order=("checkAfter", "__name__"),
        limit=limit,
        after=after,
    )
    return database.query(database.names.address.root, structured, database.deadline())


def _look_at(database: Database, jobs: Jobs, latches: Latches, document: Found) -> JobRecord | None:
    """Decide what is open in a job, and return it if it became due by that.

    A job that cannot be decided is logged and left, and does not keep the caller from the others.
    Raises: StoreUnavailable – the store is away.
    """
    before = job_of(document.fields, document.id)
    if before is None:
        return None
    try:
        latches.decide(before.ref, None, database.deadline())
        known = jobs.current(before.ref, database.deadline())
        if not known.job.settled:
            now = database.now()
            shortest = in_microseconds(database.timings.recheck_after)
            later = Moment(now + min(max((now - known.job.created_at) // 4, shortest), LONGEST))
            with suppress(PreconditionFailed):  # changed by somebody else, who sets it too
                database.retry([requests.touch(document.name, {"checkAfter": later}, known.stamp)], database.deadline())
    except (JobNotFound, StoreContended):  # deleted, or changed all the while by others, who decide themselves
        return None
    except StoreUnavailable:
        raise
    except StoreError as error:
        extra = {"job_id": before.job_id}
        logger.warning("cannot decide the callbacks of job %r, will retry: %s", before.job_id, error, extra=extra)
        return None
    return known.job if known.job.due and not before.due else None
