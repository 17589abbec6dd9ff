"""List jobs and their progress without reading their states."""

from __future__ import annotations

import difflib
import heapq
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import islice

from celery_statemanager import aggregate
from celery_statemanager.errors import JobNotFound, StoreError, StoreUnavailable
from celery_statemanager.models import Summary
from celery_statemanager.records import Column, JobKey, JobRecord, JobRef
from celery_statemanager.stores.base import Store

logger = logging.getLogger(__name__)


class Phase(str, Enum):
    """The condition of a job in one word; the last three are final."""

    WAITING = "waiting"
    """No cell has begun."""
    RUNNING = "running"
    FAILING = "failing"
    """The job has not ended, and a cell has failed or was not run."""
    FINISHED = "finished"
    FAILED = "failed"
    """Every cell has ended, and one has failed or was not run."""
    CANCELLED = "cancelled"


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
        text: part of the job's id, ignoring case.
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
            and self.text.casefold() in job.job_id.casefold()
            and (self.idle_before is None or job.last_activity < self.idle_before)
            and (self.active_since is None or job.last_activity >= self.active_since)
        )


def overview(store: Store, ref: JobRef, *, indexes: bool = False) -> Overview:
    """Return one job with its counts. Raises: JobNotFound, StoreError."""
    job, columns = store.column_summaries(ref, indexes=indexes)
    summary = aggregate.summarize(job, columns, indexes=indexes)
    phase = _phase(job, summary, over=aggregate.settled(job, columns))
    order = job.plan.tags if job.plan else sorted(each.tag for each in columns)
    return Overview(job, phase, summary, sorted(columns, key=lambda column: order.index(column.tag)))


def list_overviews(store: Store, wanted: Wanted, limit: int) -> tuple[list[Overview], int]:
    """Return the wanted jobs, the most recently written first, and their number without the limit.

    All job records are read (with ``idle_before``, those of idle jobs). Cells are counted for the returned jobs or, if
    phases are given, for all that match otherwise. Memory grows only with the limit. Raises: StoreError.
    """
    records = (job for job in _records(store, wanted.idle_before) if wanted.holds(job))
    total = 0

    def counted() -> Iterator[JobRecord]:
        nonlocal total
        for job in records:
            if not wanted.phases or _has_phase(store, job, wanted.phases):
                total += 1
                yield job

    newest = heapq.nlargest(limit, counted(), key=lambda job: (job.last_activity, job.created_at))
    found = (_still_there(store, job) for job in newest)
    return [each for each in found if each is not None], total


def look_alikes(store: Store, key: JobKey, among: int = 1_000) -> list[JobKey]:
    """Return at most five jobs: the runs of this job_id or, if there are none, those with a similar job_id.

    Args:
        among: the maximum number of records to read to find similar job_ids.

    Raises: StoreError.
    """
    runs = [JobKey(key.job_id, token) for token in store.list_runs(key.job_id, 5)]
    if runs:
        return runs
    found = [job.key for job in islice(_records(store, None), among)]
    names = difflib.get_close_matches(key.job_id, {each.job_id for each in found}, 3, 0.8)
    return [each for name in names for each in found if each.job_id == name][:5]


def _phase(job: JobRecord, summary: Summary, *, over: bool) -> Phase:
    if job.cancelled:
        return Phase.CANCELLED
    if summary.failed or summary.not_run:  # what a failure had blocked stays so if the failed cell is overwritten
        return Phase.FAILED if over else Phase.FAILING
    if over:
        return Phase.FINISHED
    return Phase.RUNNING if summary.running or summary.finished else Phase.WAITING


def _records(store: Store, idle_before: int | None) -> Iterator[JobRecord]:
    cursor: str | None = None
    while True:
        page = store.list_jobs(cursor, idle_before=idle_before)
        yield from page.jobs
        cursor = page.cursor
        if cursor is None:
            return


def _has_phase(store: Store, job: JobRecord, phases: frozenset[Phase]) -> bool:
    found = _still_there(store, job)
    return found is not None and found.phase in phases


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
