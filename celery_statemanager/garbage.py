"""Collect garbage: hide idle jobs, delete them when they stay idle, revive them when they are written (rule R10)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import Enum
from typing import Any

from celery_statemanager import leases
from celery_statemanager.errors import JobNotFound
from celery_statemanager.records import JobRecord
from celery_statemanager.retention import Ages, current, is_newer
from celery_statemanager.stores.capabilities import Outbox

PURGED_AT_ONCE = 10_000
"""Approximate number of leftover rows that one call removes; other writers proceed between two calls."""


class Act(str, Enum):
    """What a collection does to a job."""

    TOMBSTONED = "tombstoned"
    REVIVED = "revived"
    DELETED = "deleted"


class Skip(str, Enum):
    """Why a collection leaves an idle job unchanged."""

    RUNNING = "running"
    """A live worker runs, or has received, one of its tasks."""
    CALLBACK = "callback"
    """One of its callbacks is not published yet."""
    PUBLISHING = "publishing"
    """Some of its messages are not published yet."""
    NEWER = "newer"
    """Only a newer release can read it."""
    CHANGED = "changed"
    """It was written, changed or deleted during the collection."""


@dataclass(slots=True)
class GarbageReport:
    """Count what a collection did or, on a dry run, would do.

    Attributes:
        scanned: jobs examined: idle ones and those marked deleted.
        purged: rows of deleted jobs that were removed.
        skipped: idle jobs that were left unchanged, by reason (``Skip``).
    """

    scanned: int = 0
    tombstoned: int = 0
    revived: int = 0
    deleted: int = 0
    purged: int = 0
    skipped: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any((self.tombstoned, self.revived, self.deleted, self.purged))


Notify = Callable[[JobRecord, "Act | Skip"], object]
"""Called with each job and with what is done to it or why it is skipped."""


def collect_garbage(
    store: Outbox,
    *,
    tombstone_age: str | float | timedelta,
    delete_age: str | float | timedelta,
    dry_run: bool = False,
    tell: Notify | None = None,
) -> GarbageReport:
    """Hide idle jobs, delete jobs that have been idle longer, and revive hidden jobs that were written to.

    Jobs are skipped while a live worker runs or has received one of their tasks, and while a callback is unpublished.
    The next run resumes an interrupted one. Concurrent runs are safe.

    Args:
        tombstone_age, delete_age: time since the last write, as ``"30d"``, seconds or a timedelta.
        dry_run: write nothing and only report.
        tell: called with each job and its ``Act`` or ``Skip``.

    Raises: ConfigurationError, StoreError.
    """
    collection = _Collection(store, Ages.parse(tombstone_age, delete_age), tell)
    if dry_run:
        _dry_run(collection)
    else:
        _Collector(collection).run()
    return collection.report


class _Collection:
    """Finds the jobs to collect, and counts the results.

    Attributes:
        now: the store's time at the start; all jobs are evaluated at it.
    """

    def __init__(self, store: Outbox, ages: Ages, tell: Notify | None) -> None:
        self.store = store
        self.report = GarbageReport()
        self._ages = ages
        self._notify = tell or (lambda job, what: None)  # noqa: ARG005 - a default that ignores its arguments
        self.now = store.now()

    def revivable(self) -> Iterator[JobRecord]:
        """Yield hidden jobs that were written to after they were hidden and are not idle again."""
        for page in _pages(self.store, tombstoned=True):
            for job in page:
                self.report.scanned += 1
                if job.last_activity > (job.tombstoned_at or 0) and not self._idle_for(job, self._ages.tombstone):
                    yield job

    def collectable(self) -> Iterator[tuple[JobRecord, Act]]:
        """Yield idle jobs that may be collected, each with the action that is due."""
        for page in _pages(self.store, idle_before=self.now - self._ages.tombstone):
            held: Callable[[str], bool] | None = None
            for job in page:
                self.report.scanned += job.tombstoned_at is None
                act = Act.DELETED if self._idle_for(job, self._ages.delete) else Act.TOMBSTONED
                if act is Act.TOMBSTONED and job.tombstoned_at is not None:
                    continue
                held = leases.jobs_at_work(self.store) if held is None else held
                reason = self._skip_reason(job, held)
                if reason is None:
                    yield job, act
                else:
                    self.skip(job, reason)

    def record(self, job: JobRecord, act: Act) -> None:
        """Count an act and report it."""
        setattr(self.report, act.value, getattr(self.report, act.value) + 1)
        self._notify(job, act)

    def skip(self, job: JobRecord, reason: Skip) -> None:
        """Count a skipped job and report it."""
        self.report.skipped[reason.value] = self.report.skipped.get(reason.value, 0) + 1
        self._notify(job, reason)

    def _idle_for(self, job: JobRecord, age: int) -> bool:
        return self.now - job.last_activity > age

    def _skip_reason(self, job: JobRecord, held: Callable[[str], bool]) -> Skip | None:
        if is_newer(job):
            return Skip.NEWER
        if held(job.incarnation):
            return Skip.RUNNING
        if has_callback_to_publish(job):
            return Skip.CALLBACK
        return Skip.PUBLISHING if has_messages_to_publish(self.store, job) else None


def _dry_run(collection: _Collection) -> None:
    for job in collection.revivable():
        collection.record(job, Act.REVIVED)
    for job, act in collection.collectable():
        collection.record(job, act)


class _Collector:
    """Performs the actions. Each is a compare-and-set on the job record as it was evaluated."""

    def __init__(self, collection: _Collection) -> None:
        self._collection = collection
        self._store = collection.store

    def run(self) -> None:
        self._purge()
        for job in self._collection.revivable():
            self._do(job, Act.REVIVED, self._revive)
        for job, act in self._collection.collectable():
            self._do(job, act, self._delete if act is Act.DELETED else self._hide)
        self._purge()

    def _do(self, job: JobRecord, act: Act, action: Callable[[JobRecord], Skip | None]) -> None:
        try:
            reason = action(job)
        except JobNotFound:
            reason = Skip.CHANGED
        if reason is None:
            self._collection.record(job, act)
        else:
            self._collection.skip(job, reason)

    def _revive(self, job: JobRecord) -> Skip | None:
        return None if self._store.update_job(replace(job, tombstoned_at=None)) is not None else Skip.CHANGED

    def _hide(self, job: JobRecord) -> Skip | None:
        marked = self._marked(job)
        return None if isinstance(marked, JobRecord) else marked

    def _delete(self, job: JobRecord) -> Skip | None:
        """Delete an unchanged job; mark it first if it has not settled, so that no latch is decided later."""
        marked = job if job.settled or job.tombstoned_at is not None else self._marked(job)
        if not isinstance(marked, JobRecord):
            return marked
        return None if self._store.delete_job(marked, if_idle=True) else Skip.CHANGED

    def _marked(self, job: JobRecord) -> JobRecord | Skip:
        """Mark a job deleted; undo this if it was written to before the mark, or if the mark decided a latch.

        The mark stores the time of the evaluation. If the collection is interrupted here, the next run detects that the
        write came later.
        """
        if self._store.update_job(replace(job, tombstoned_at=self._collection.now)) is None:
            return Skip.CHANGED
        marked = current(self._store, job.ref)
        if marked.last_activity == job.last_activity and not has_callback_to_publish(marked):
            return marked
        self._revive(marked)
        return Skip.CALLBACK if has_callback_to_publish(marked) else Skip.CHANGED

    def _purge(self) -> None:
        while purged := self._store.purge(PURGED_AT_ONCE):
            self._collection.report.purged += purged


def has_messages_to_publish(store: Outbox, job: JobRecord) -> bool:
    """Return whether messages of a job are not published, or not known to be. Raises: JobNotFound, StoreError."""
    if not job.publishes:
        return False
    outbox = store.get_outbox(job.ref)
    has_due = outbox.claimed < job.num_tasks or bool(outbox.claims or outbox.returned)
    return has_due or bool(job.flow and job.flow.paused) or bool(job.generation.rows_to_reset)


def has_callback_to_publish(job: JobRecord) -> bool:
    """Return whether a latch is decided whose callback is not known to be published."""
    return any(latch.due for latch in job.latches.values())


def _pages(store: Outbox, **only: Any) -> Iterator[list[JobRecord]]:
    cursor: str | None = None
    while True:
        page = store.list_jobs(cursor, **only)
        yield page.jobs
        cursor = page.cursor
        if cursor is None:
            return
