"""List jobs and their progress without reading their states."""

from __future__ import annotations

import difflib
import heapq
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from celery_statemanager import aggregate
from celery_statemanager.errors import JobNotFound, StoreError, StoreUnavailable
from celery_statemanager.limits import short_repr
from celery_statemanager.models import Summary
from celery_statemanager.records import Column, JobKey, JobRecord, JobRef
from celery_statemanager.stores.base import Store

logger = logging.getLogger(__name__)


MOST_EXAMINED = 1_000
"""Jobs that one page of a filtered list examines."""

_EXAMINED_AT_ONCE = 100


class Phase(str, Enum):
    """The condition of a job in one word: of those that apply, the last. The last three are final until a rerun."""

    WAITING = "waiting"
    """No cell has begun."""
    RUNNING = "running"
    """A cell has begun."""
    FAILING = "failing"
    """A cell has failed or was not run, and the job has not settled."""
    PAUSED = "paused"
    """The rows that have not begun are held back."""
    FINISHED = "finished"
    """The job has settled, and its success was decided. Without a plan: all cells that were written are FINISHED."""
    FAILED = "failed"
    """The job has settled without success."""
    CANCELLED = "cancelled"
    """The job was cancelled, also while running tasks have not stopped."""

    @classmethod
    def parse(cls, value: Any) -> Phase:
        """Return the phase with this name. Raises: TypeError, ValueError."""
        if not isinstance(value, str):
            raise TypeError(f"phase must be a string or None, not {short_repr(value)}")
        if value not in [each.value for each in cls]:
            raise ValueError(f"phase must be one of {', '.join(each.value for each in cls)}, not {short_repr(value)}")
        return cls(value)


@dataclass(frozen=True, slots=True)
class Overview:
    """A job at one moment.

    Attributes:
        columns: the store's counts of the expected tags, in the order in which they first run.
    """

    job: JobRecord
    phase: Phase
    summary: Summary
    columns: list[Column]

    @property
    def tags(self) -> dict[str, Summary]:
        """The summary of each expected tag, with index sets if they were requested."""
        return {
            each.tag: aggregate.summarize(self.job, [each], indexes=each.failed is not None) for each in self.columns
        }


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which jobs to list; None or an empty value matches all.

    Attributes:
        text: part of the job's id, of its run token, or of the ``owner`` or ``title`` in its metadata, ignoring case.
        idle_before: only jobs last written before this time, in microseconds since the epoch.
        active_since: only jobs last written at this time or later.
        tombstoned: include jobs marked deleted.
    """

    text: str = ""
    idle_before: int | None = None
    active_since: int | None = None
    phases: frozenset[Phase] = frozenset()
    tombstoned: bool = False

    def holds(self, job: JobRecord) -> bool:
        """Return whether a job's record matches; phases need the cells and are not checked."""
        return (
            (self.tombstoned or job.tombstoned_at is None)
            and _mentions(job, self.text.casefold())
            and (self.idle_before is None or job.last_activity < self.idle_before)
            and (self.active_since is None or job.last_activity >= self.active_since)
        )

    @property
    def filters(self) -> bool:
        """Whether most jobs may not match."""
        return self != Wanted(tombstoned=self.tombstoned)


def overview(store: Store, ref: JobRef, *, indexes: bool = False) -> Overview:
    """Return one job with its counts. Raises: JobNotFound, StoreError."""
    job, columns = store.column_summaries(ref, indexes=indexes)
    summary = aggregate.summarize(job, columns, indexes=indexes)
    phase = _phase(job, summary, over=aggregate.settled(job, columns))
    return Overview(job, phase, summary, in_stage_order(job, columns))


def in_stage_order(job: JobRecord, columns: list[Column]) -> list[Column]:
    """Return the expected columns of a job in the order in which their tags first run; without a plan, by tag."""
    order = job.plan.tags if job.plan else sorted(each.tag for each in columns)
    return sorted(columns, key=lambda column: order.index(column.tag))


def newest_page(
    store: Store, wanted: Wanted, limit: int, cursor: str | None = None
) -> tuple[list[JobRecord], str | None]:
    """Return up to ``limit`` wanted jobs, the newest first, and the cursor of the next page; None at the end.

    A page examines at most 1,000 jobs, so it may be short or empty and still have a cursor. It reads the records of
    the jobs that it examines. Cells are counted only for phases, and only if the record of a job does not show its
    phase. Raises: ValueError – the cursor is invalid; StoreError.
    """
    found: list[JobRecord] = []
    examined, size = 0, min(max(limit + 1, _EXAMINED_AT_ONCE if wanted.filters else 0), MOST_EXAMINED + 1)
    while True:
        chunk = store.newest_jobs(cursor, size)
        for job, after in chunk:
            if len(found) == limit or examined == MOST_EXAMINED:
                return found, cursor
            examined, cursor = examined + 1, after
            if _is_wanted(store, job, wanted):
                found.append(job)
        if len(chunk) < size:
            return found, None


def list_overviews(store: Store, wanted: Wanted, limit: int) -> tuple[list[Overview], bool]:
    """Return the newest wanted jobs with their counts, and whether there may be more.

    As many jobs are examined as it takes; with ``idle_before``, only idle ones. Raises: StoreError.
    """
    if wanted.idle_before is not None:
        idle = (job for job in _idle_jobs(store, wanted.idle_before) if _is_wanted(store, job, wanted))
        newest = heapq.nlargest(limit + 1, idle, key=lambda job: (job.created_at, job.incarnation))
        shown = (_still_there(store, job) for job in newest[:limit])
        return [each for each in shown if each is not None], len(newest) > limit
    found: list[Overview] = []
    cursor: str | None = None
    while True:
        jobs, cursor = newest_page(store, wanted, limit - len(found), cursor)
        found += filter(None, (_still_there(store, job) for job in jobs))
        if cursor is None or len(found) == limit:
            return found, cursor is not None


def look_alikes(store: Store, key: JobKey, among: int = 1_000) -> list[JobKey]:
    """Return at most five jobs: the runs of this job_id or, if there are none, those with a similar job_id.

    Args:
        among: the maximum number of records to read to find similar job_ids.

    Raises: StoreError.
    """
    runs = [JobKey(key.job_id, token) for token in store.list_runs(key.job_id, 5)]
    if runs:
        return runs
    found = [each.job.key for each in store.newest_jobs(limit=among)]
    names = difflib.get_close_matches(key.job_id, {each.job_id for each in found}, 3, 0.8)
    return [each for name in names for each in found if each.job_id == name][:5]


def _phase_of_record(job: JobRecord) -> Phase | None:
    """Return the phase of a job if its record shows it without its cells."""
    if job.cancelled:
        return Phase.CANCELLED
    if job.settled:
        return Phase.FINISHED if job.latches["success"].decided_at is not None else Phase.FAILED
    return None


def _phase(job: JobRecord, summary: Summary, *, over: bool) -> Phase:
    shown = _phase_of_record(job)
    if shown is not None:
        return shown
    has_failed = summary.failed or summary.not_run
    if over:
        return Phase.FAILED if has_failed else Phase.FINISHED
    if job.flow is not None and job.flow.paused:
        return Phase.PAUSED
    if has_failed and job.policy.max_failed is None:
        return Phase.FAILING
    return Phase.RUNNING if summary.running or summary.finished or has_failed else Phase.WAITING


def _mentions(job: JobRecord, text: str) -> bool:
    """Return whether a job has a case-folded text in one of the fields that a search covers."""
    if not text:
        return True
    metadata = json.loads(job.metadata or "{}")
    fields = (job.job_id, job.run_token, metadata.get("owner"), metadata.get("title"))
    return any(text in each.casefold() for each in fields if isinstance(each, str))


def _is_wanted(store: Store, job: JobRecord, wanted: Wanted) -> bool:
    """Return whether a job matches. Count its cells only if its record does not show its phase."""
    if not wanted.holds(job):
        return False
    if not wanted.phases:
        return True
    shown = _phase_of_record(job)
    if shown is None:
        found = _still_there(store, job)
        shown = None if found is None else found.phase
    return shown in wanted.phases


def _idle_jobs(store: Store, before: int) -> Iterator[JobRecord]:
    cursor: str | None = None
    while True:
        page = store.list_jobs(cursor, idle_before=before)
        yield from page.jobs
        cursor = page.cursor
        if cursor is None:
            return


def _still_there(store: Store, job: JobRecord) -> Overview | None:
    """Return a listed job with its counts. Log one that cannot be read, so that the others are still listed."""
    try:
        return overview(store, job.ref)
    except JobNotFound:  # deleted since it was listed
        return None
    except StoreUnavailable:
        raise
    except StoreError as error:
        logger.warning("job %r is not listed: %s", job.job_id, error, extra={"job_id": job.job_id})
        return None
