"""Migrate jobs: first their states, each by compare-and-set, then the job record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import islice

from celery_statemanager.errors import ConfigurationError, JobNotFound
from celery_statemanager.migrations.registry import STEPS, Steps
from celery_statemanager.records import JobKey, JobRecord, JobRef, new_incarnation
from celery_statemanager.retention import current
from celery_statemanager.stores.capabilities import Migratable

MOST_PASSES = 10
"""Maximum number of passes over the states of a job that other writers keep changing."""


class Skip(str, Enum):
    """The reason why a job is not migrated."""

    NEWER = "newer"
    """Its schema is later than the target. Migrations never go back."""
    FOREIGN = "foreign"
    """Another program created it and may still be writing to it."""
    CHANGED = "changed"
    """It was deleted, or other writers changed it in every pass. The next run resumes it."""


@dataclass(slots=True)
class MigrationReport:
    """Counts of what a run did or, on a dry run, would do.

    Attributes:
        target: the schema to which jobs were migrated.
        scanned: number of examined jobs.
        migrated: number of migrated jobs.
        states: number of migrated states of these jobs.
        skipped: number of jobs that were not migrated, by reason (a value of ``Skip``).
    """

    target: int
    scanned: int = 0
    migrated: int = 0
    states: int = 0
    skipped: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.migrated or self.states)


Tell = Callable[[JobRecord, "int | Skip"], object]
"""A function called with a job and either the number of its states to migrate or the reason to skip it."""


def migrate_jobs(
    store: Migratable,
    target: int | None = None,
    *,
    job_id: str | None = None,
    run_token: str | None = None,
    limit: int | None = None,
    dry_run: bool = False,
    foreign: bool = True,
    tell: Tell | None = None,
    steps: Steps = STEPS,
    batch_size: int = 200,
) -> MigrationReport:
    """Migrate jobs and their states to a later schema.

    Other processes may keep writing: their states are migrated, too. A job gets its new schema only after all of its
    states have it. The next run resumes an interrupted one. Concurrent runs are safe.

    Args:
        target: the schema to reach; None for the newest.
        job_id, run_token: migrate this job alone, even if it already has the schema. Workers of an earlier release
            may have written states in the meantime.
        limit: the maximum number of jobs to migrate; None for all.
        dry_run: write nothing and report what would be done.
        foreign: in a run over all jobs, include those that another program created. That program must no longer
            write to them, because its later writes are invisible.
        tell: called with each job that has an earlier or a later schema.
        batch_size: the number of states to rewrite together. Other writers proceed between two batches.

    Raises: ConfigurationError if no steps lead to the target or the named job has a later schema; JobNotFound;
    StoreError.
    """
    run = _Run(store, steps, steps.checked(steps.newest if target is None else target), tell)
    run.batch_size = batch_size
    run.dry_run, run.foreign = dry_run, foreign
    if job_id is not None:
        run.migrate_one(store.get_job(JobKey(job_id, run_token)))
    else:
        for job in islice(run.outdated(), limit):
            run.migrate(job)
    return run.report


class _Run:
    """One call of ``migrate_jobs``.

    Attributes:
        dry_run, foreign, batch_size: as in ``migrate_jobs``.
    """

    def __init__(self, store: Migratable, steps: Steps, target: int, tell: Tell | None) -> None:
        self.report = MigrationReport(target)
        self.dry_run = False
        self.foreign = True
        self.batch_size = 200
        self._store = store
        self._steps = steps
        self._target = target
        self._tell = tell or (lambda job, what: None)  # noqa: ARG005 - no listener

    def migrate_one(self, job: JobRecord) -> None:
        """Migrate a job that the caller named. Raises: ConfigurationError if its schema is later than the target."""
        if job.schema > self._target:
            raise ConfigurationError(
                f"job {job.job_id!r} has schema {job.schema} and cannot be migrated back to {self._target}: "
                f"choose a target of {job.schema} or later"
            )
        self.report.scanned += 1
        self.migrate(job)

    def outdated(self) -> Iterator[JobRecord]:
        """Yield the jobs to migrate."""
        cursor: str | None = None
        while True:
            page = self._store.list_jobs(cursor)
            for job in page.jobs:
                self.report.scanned += 1
                reason = self._skip_reason(job)
                if reason is not None:
                    self._skip(job, reason)
                elif job.schema < self._target:
                    yield job
            cursor = page.cursor
            if cursor is None:
                return

    def migrate(self, job: JobRecord) -> None:
        """Migrate a job to the target or, on a dry run, count the states that would change."""
        try:
            if self.dry_run:
                states: int | None = sum(1 for _ in self._store.outdated_cells(job.ref, self._target))
            else:
                states = self._migrate(job)
        except JobNotFound:
            states = None
        if states is None:
            self._skip(job, Skip.CHANGED)
            return
        if states or job.schema < self._target:
            self.report.migrated += 1
            self.report.states += states
            self._tell(job, states)

    def _skip_reason(self, job: JobRecord) -> Skip | None:
        if job.schema > self._target:
            return Skip.NEWER
        return Skip.FOREIGN if not job.incarnation and not self.foreign else None

    def _skip(self, job: JobRecord, reason: Skip) -> None:
        self.report.skipped[reason.value] = self.report.skipped.get(reason.value, 0) + 1
        self._tell(job, reason)

    def _migrate(self, job: JobRecord) -> int | None:
        """Return the number of rewritten states, or None if other writers changed the job in every pass."""
        if not job.incarnation:
            job = self._store.adopt_job(job.ref, new_incarnation())
        states = 0
        for _ in range(MOST_PASSES):
            outdated, rewritten = self._rewrite_outdated(job)
            states += rewritten
            if outdated == rewritten and self._migrate_record(job.ref):
                return states
        return None

    def _rewrite_outdated(self, job: JobRecord) -> tuple[int, int]:
        """Return how many states had an earlier schema, and how many of them were rewritten."""
        outdated = rewritten = 0
        cells = self._store.outdated_cells(job.ref, self._target)
        while portion := list(islice(cells, self.batch_size)):
            new = [replace(each, cell=self._steps.state(job, each.cell, self._target)) for each in portion]
            rewritten += self._store.rewrite_cells(job.ref, new)
            outdated += len(portion)
        return outdated, rewritten

    def _migrate_record(self, ref: JobRef) -> bool:
        """Migrate the job record. Return False if another process changed it at the same time."""
        job = current(self._store, ref)
        return job.schema >= self._target or self._store.update_job(self._steps.job(job, self._target)) is not None
