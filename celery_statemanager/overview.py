"""Jobs at a glance: which there are, and how far each has got, without reading their states."""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import islice

from celery_statemanager import aggregate
from celery_statemanager.errors import JobNotFound
from celery_statemanager.models import Summary
from celery_statemanager.records import Column, JobKey, JobRecord, JobRef
from celery_statemanager.stores.base import Store


class Phase(str, Enum):
    """Where a job is, in a word; the last three are ends."""

    WAITING = "waiting"
    """Nothing of it has begun."""
    RUNNING = "running"
    FAILING = "failing"
    """It goes on, and a cell has failed or was not run."""
    FINISHED = "finished"
    FAILED = "failed"
    """Every cell has ended, and one has failed or was not run."""
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Overview:
    """A job as of one moment.

    Attributes:
        columns: the expected tags as the store counted them, in the order in which they first run.
    """

    job: JobRecord
    phase: Phase
    summary: Summary
    columns: list[Column]

    @property
    def tags(self) -> dict[str, Summary]:
        """The summary of each expected tag; with index sets where they were asked for."""
        return {
            each.tag: aggregate.summarize(self.job, [each], indexes=each.failed is not None) for each in self.columns
        }


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which jobs to list; what is None, or empty, does not matter.

    Attributes:
        text: part of the job's id, in upper or lower case.
        idle_before: only those last written before this moment, in microseconds since the epoch.
        active_since: only those last written at this moment or later.
        tombstoned: list those marked deleted, too.
    """

    text: str = ""
    idle_before: int | None = None
    active_since: int | None = None
    phases: frozenset[Phase] = frozenset()
    tombstoned: bool = False

    def holds(self, job: JobRecord) -> bool:
        """Whether a job's record, before its cells are counted, is one of them."""
        return (
            (self.tombstoned or job.tombstoned_at is None)
            and self.text.casefold() in job.job_id.casefold()
            and (self.idle_before is None or job.last_activity < self.idle_before)
            and (self.active_since is None or job.last_activity >= self.active_since)
        )


def overview(store: Store, ref: JobRef, *, indexes: bool = False) -> Overview:
    """Give one job. Raises: JobNotFound, StoreError."""
    job, columns = store.column_summaries(ref, indexes=indexes)
    summary = aggregate.summarize(job, columns, indexes=indexes)
    phase = _phase(job, summary, over=aggregate.settled(job, columns))
    order = job.plan.tags if job.plan else sorted(each.tag for each in columns)
    return Overview(job, phase, summary, sorted(columns, key=lambda column: order.index(column.tag)))


def list_overviews(store: Store, wanted: Wanted, limit: int) -> tuple[list[Overview], int]:
    """Give the jobs wanted, the last written first, and how many there were without the limit.

    Reads every job's record (with ``idle_before``, those of idle jobs), and counts the cells of those it gives or,
    where phases are chosen, of all that are left. Memory grows with the limit alone. Raises: StoreError.
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
    found = (_still_there(store, job.ref) for job in newest)
    return [each for each in found if each is not None], total


def look_alikes(store: Store, key: JobKey, among: int = 1_000) -> list[JobKey]:
    """Give the runs of a name that are there or, where there are none, the names that look most like it; five at most.

    Args:
        among: records that are read at most.

    Raises: StoreError.
    """
    found = [job.key for job in islice(_records(store, None), among)]
    runs = [each for each in found if each.job_id == key.job_id]
    names = difflib.get_close_matches(key.job_id, {each.job_id for each in found}, 3, 0.8)
    return (runs or [each for name in names for each in found if each.job_id == name])[:5]


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
    found = _still_there(store, job.ref)
    return found is not None and found.phase in phases


def _still_there(store: Store, ref: JobRef) -> Overview | None:
    try:
        return overview(store, ref)
    except JobNotFound:  # deleted since it was listed
        return None
