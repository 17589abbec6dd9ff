"""Garbage collection (rule R10): idle jobs are hidden, deleted when idle for longer, and revived when written to."""

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
from celery_statemanager.stores.capabilities import WorkerRegistry

PURGED_AT_ONCE = 10_000
"""Leftover rows that one call removes, about; between two calls other writers have their turn."""


class Act(str, Enum):
    """What becomes of a job."""

    TOMBSTONED = "tombstoned"
    REVIVED = "revived"
    DELETED = "deleted"


class Skip(str, Enum):
    """Why an idle job is left as it is."""

    RUNNING = "running"
    """A live worker runs or holds one of its tasks."""
    CALLBACK = "callback"
    """A callback of it is still to be published."""
    PUBLISHING = "publishing"
    """Its publisher lives and has not come to its end."""
    NEWER = "newer"
    """Only a newer release understands it."""
    CHANGED = "changed"
    """It was written to, or changed, or deleted by another, at this very moment."""


@dataclass(slots=True)
class GarbageReport:
    """What a collection did or, on a dry run, would do; in numbers.

    Attributes:
        scanned: jobs looked at: the idle ones, and those marked deleted.
        purged: rows of deleted jobs that were removed.
        skipped: idle jobs that were left, by the reason (``Skip``).
    """

    scanned: int = 0
    tombstoned: int = 0
    revived: int = 0
    deleted: int = 0
    purged: int = 0
    skipped: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any((self.tombstoned, self.revived, self.deleted, self.purged))


Tell = Callable[[JobRecord, "Act | Skip"], object]
"""Is told of each job that something is done to, or that is spared."""


def collect_garbage(
    store: WorkerRegistry,
    *,
    tombstone_age: str | float | timedelta,
    delete_age: str | float | timedelta,
    dry_run: bool = False,
    tell: Tell | None = None,
) -> GarbageReport:
    """Hide jobs that are idle, delete those that have been for longer, revive the hidden ones that were written to.

    Spared are jobs with a task that a live worker runs or has received, and jobs with a callback to be published. Cut
    off, it is done by the next run; two at once do no harm.

    Args:
        tombstone_age, delete_age: time since the last write, as ``"30d"``, seconds or a timedelta.
        dry_run: write nothing; tell what would be done.
        tell: called with each job and what became, or would become, of it.

    Raises: ConfigurationError, StoreError.
    """
    collection = _Collection(store, Ages.parse(tombstone_age, delete_age), tell)
    if dry_run:
        _rehearse(collection)
    else:
        _Collector(collection).run()
    return collection.report


class _Collection:
    """What is found in a store, and the report on it.

    Attributes:
        now: the store's time when it began, by which all jobs are judged.
    """

    def __init__(self, store: WorkerRegistry, ages: Ages, tell: Tell | None) -> None:
        self.store = store
        self.report = GarbageReport()
        self._ages = ages
        self._tell = tell or (lambda job, what: None)  # noqa: ARG005 - nobody listens
        self.now = store.now()

    def revivable(self) -> Iterator[JobRecord]:
        """Give the hidden jobs that were written to since, and are not idle again."""
        for page in _pages(self.store, tombstoned=True):
            for job in page:
                self.report.scanned += 1
                if job.last_activity > (job.tombstoned_at or 0) and not self._idle_for(job, self._ages.tombstone):
                    yield job

    def collectable(self) -> Iterator[tuple[JobRecord, Act]]:
        """Give the idle jobs that nothing holds, and what is to become of each."""
        for page in _pages(self.store, idle_before=self.now - self._ages.tombstone):
            held: Callable[[str], bool] | None = None
            for job in page:
                self.report.scanned += job.tombstoned_at is None
                act = Act.DELETED if self._idle_for(job, self._ages.delete) else Act.TOMBSTONED
                if act is Act.TOMBSTONED and job.tombstoned_at is not None:
                    continue
                held = leases.jobs_at_work(self.store) if held is None else held
                reason = self._spared(job, held)
                if reason is None:
                    yield job, act
                else:
                    self.skip(job, reason)

    def did(self, job: JobRecord, act: Act) -> None:
        """Count what became of a job."""
        setattr(self.report, act.value, getattr(self.report, act.value) + 1)
        self._tell(job, act)

    def skip(self, job: JobRecord, reason: Skip) -> None:
        """Count a job that is left as it is."""
        self.report.skipped[reason.value] = self.report.skipped.get(reason.value, 0) + 1
        self._tell(job, reason)

    def _idle_for(self, job: JobRecord, age: int) -> bool:
        return self.now - job.last_activity > age

    def _spared(self, job: JobRecord, held: Callable[[str], bool]) -> Skip | None:
        if is_newer(job):
            return Skip.NEWER
        if held(job.incarnation):
            return Skip.RUNNING
        if has_callback_to_publish(job):
            return Skip.CALLBACK
        submission = job.submission
        if submission is not None and not submission.done and submission.alive_until > self.now:
            return Skip.PUBLISHING
        return None


def _rehearse(collection: _Collection) -> None:
    for job in collection.revivable():
        collection.did(job, Act.REVIVED)
    for job, act in collection.collectable():
        collection.did(job, act)


class _Collector:
    """Does it. Each act is a compare-and-set on the job as it was judged."""

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
            self._collection.did(job, act)
        else:
            self._collection.skip(job, reason)

    def _revive(self, job: JobRecord) -> Skip | None:
        return None if self._store.update_job(replace(job, tombstoned_at=None)) is not None else Skip.CHANGED

    def _hide(self, job: JobRecord) -> Skip | None:
        marked = self._marked(job)
        return None if isinstance(marked, JobRecord) else marked

    def _delete(self, job: JobRecord) -> Skip | None:
        """Delete a job that is as it was judged; marking one that has not settled makes sure that nothing is due."""
        marked = job if job.settled or job.tombstoned_at is not None else self._marked(job)
        if not isinstance(marked, JobRecord):
            return marked
        return None if self._store.delete_job(marked, if_idle=True) else Skip.CHANGED

    def _marked(self, job: JobRecord) -> JobRecord | Skip:
        """Mark a job deleted, and take that back if it was written to before the mark, or has a latch fall by it.

        The mark bears the time of the judgement: should this be cut off, the next run sees that the write came later.
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


def has_callback_to_publish(job: JobRecord) -> bool:
    """Whether a latch has fallen whose callback is not known to be sent."""
    return any(latch.due for latch in job.latches.values())


def _pages(store: WorkerRegistry, **only: Any) -> Iterator[list[JobRecord]]:
    cursor: str | None = None
    while True:
        page = store.list_jobs(cursor, **only)
        yield page.jobs
        cursor = page.cursor
        if cursor is None:
            return
