"""Takes jobs through the steps: first their states, each by compare-and-set, then the job itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import islice

from celery_statemanager.errors import ConfigurationError, JobNotFound
from celery_statemanager.manager import new_incarnation
from celery_statemanager.migrations.registry import STEPS, Steps
from celery_statemanager.records import JobKey, JobRecord, JobRef
from celery_statemanager.retention import current
from celery_statemanager.stores.capabilities import Migratable

AT_ONCE = 200
"""Cells that are in hand at once, about; between two portions other writers have their turn."""

MOST_PASSES = 10
"""How often the states of a job are gone through that is written to all the while."""


class Skip(str, Enum):
    """Why a job is left as it is."""

    NEWER = "newer"
    """It has a later schema than the target; there is no way back."""
    FOREIGN = "foreign"
    """Another program made it, and nobody has said that this one has stopped writing."""
    CHANGED = "changed"
    """It was deleted, or written to all the while; the next run goes on with it."""


@dataclass(slots=True)
class MigrationReport:
    """What a run did or, on a dry run, would do; in numbers.

    Attributes:
        target: the schema that jobs were brought to.
        scanned: jobs looked at.
        migrated: jobs brought to the target, with ``states`` of theirs.
        skipped: jobs that were left, by the reason (``Skip``).
    """

    target: int
    scanned: int = 0
    migrated: int = 0
    states: int = 0
    skipped: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.migrated or self.states)


Tell = Callable[[JobRecord, "int | Skip"], object]
"""Is told of each job how many of its states were migrated, or would be; or why it is left."""


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
) -> MigrationReport:
    """Bring jobs of an earlier schema, and their states, to a later one.

    Writers may go on: what they write meanwhile is migrated as they left it. A job bears its new schema only after
    all its states do. Cut off, a run is gone on with by the next; two at once do no harm.

    Args:
        target: the schema to reach; None for the newest.
        job_id, run_token: this job alone, also if it bears the schema already: workers of an earlier release may
            have written states since.
        limit: after so many jobs it ends; None for all.
        dry_run: write nothing; tell what would be done.
        foreign: in a run over all jobs, take over those that another program made, too. It must write into them no
            more: what it writes into a job that is ours is seen by nobody.
        tell: called with each job that has an earlier or a later schema.

    Raises: ConfigurationError – no steps lead to the target; the one job has a later schema. JobNotFound, StoreError.
    """
    run = _Run(store, steps, steps.checked(steps.newest if target is None else target), tell)
    run.dry_run, run.foreign = dry_run, foreign
    if job_id is not None:
        run.one(store.get_job(JobKey(job_id, run_token)))
    else:
        for job in islice(run.outdated(), limit):
            run.migrate(job)
    return run.report


class _Run:
    """One run.

    Attributes:
        dry_run, foreign: as ``migrate_jobs`` says.
    """

    def __init__(self, store: Migratable, steps: Steps, target: int, tell: Tell | None) -> None:
        self.report = MigrationReport(target)
        self.dry_run = False
        self.foreign = True
        self._store = store
        self._steps = steps
        self._target = target
        self._tell = tell or (lambda job, what: None)  # noqa: ARG005 - nobody listens

    def one(self, job: JobRecord) -> None:
        """Migrate the job that was asked for. Raises: ConfigurationError, JobNotFound."""
        if job.schema > self._target:
            raise ConfigurationError(
                f"job {job.job_id!r} has schema {job.schema}, there is no way back to {self._target}: give a target of "
                f"{job.schema} or later"
            )
        self.report.scanned += 1
        self.migrate(job)

    def outdated(self) -> Iterator[JobRecord]:
        """Give the jobs that are to be migrated."""
        cursor: str | None = None
        while True:
            page = self._store.list_jobs(cursor)
            for job in page.jobs:
                self.report.scanned += 1
                reason = self._spared(job)
                if reason is not None:
                    self._skip(job, reason)
                elif job.schema < self._target:
                    yield job
            cursor = page.cursor
            if cursor is None:
                return

    def migrate(self, job: JobRecord) -> None:
        """Bring a job to the target, or tell what that would change."""
        try:
            states = self._count(job) if self.dry_run else self._migrate(job)
        except JobNotFound:
            states = None
        if states is None:
            self._skip(job, Skip.CHANGED)
            return
        if states or job.schema < self._target:
            self.report.migrated += 1
            self.report.states += states
            self._tell(job, states)

    def _spared(self, job: JobRecord) -> Skip | None:
        if job.schema > self._target:
            return Skip.NEWER
        return Skip.FOREIGN if not job.incarnation and not self.foreign else None

    def _skip(self, job: JobRecord, reason: Skip) -> None:
        self.report.skipped[reason.value] = self.report.skipped.get(reason.value, 0) + 1
        self._tell(job, reason)

    def _count(self, job: JobRecord) -> int:
        return sum(1 for _ in self._store.outdated_cells(job.ref, self._target))

    def _migrate(self, job: JobRecord) -> int | None:
        """Give how many states were rewritten; None if the job was written to all the while."""
        if not job.incarnation:
            job = self._store.adopt_job(job.ref, new_incarnation())
        states = 0
        for _ in range(MOST_PASSES):
            found, rewritten = self._pass(job)
            states += rewritten
            if found == rewritten and self._stamp(job.ref):
                return states
        return None

    def _pass(self, job: JobRecord) -> tuple[int, int]:
        """Go through the states of an earlier schema; give how many there were, and how many were rewritten."""
        found = rewritten = 0
        outdated = self._store.outdated_cells(job.ref, self._target)
        while some := list(islice(outdated, AT_ONCE)):
            new = [replace(each, cell=self._steps.state(job, each.cell, self._target)) for each in some]
            rewritten += self._store.rewrite_cells(job.ref, new)
            found += len(some)
        return found, rewritten

    def _stamp(self, ref: JobRef) -> bool:
        """Take the job itself through the steps, unless it has changed since."""
        job = current(self._store, ref)
        return job.schema >= self._target or self._store.update_job(self._steps.job(job, self._target)) is not None
