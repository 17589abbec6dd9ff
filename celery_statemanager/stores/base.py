"""The part of the store contract that every store implements: jobs, cells, aggregates and live changes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from celery_statemanager.models import Scope, State
from celery_statemanager.records import (
    Batch,
    Begin,
    BeginReply,
    Cell,
    Column,
    JobKey,
    JobRecord,
    JobRef,
    Page,
    Write,
    WriteReply,
)

if TYPE_CHECKING:
    from typing_extensions import Self


class Watch(ABC):
    """The live changes of a job since ``Store.watch`` returned. One thread reads it; any thread may close it."""

    @abstractmethod
    def read(self, timeout: float) -> Batch:
        """Wait for changes; return an empty batch after ``timeout`` seconds, or at once when closed.

        The last version of every cell arrives. Between two reads only the newest version of a cell is kept, so a
        slow reader costs writers and the store one entry a cell at most. A version may arrive twice and, after
        ``resync``, older versions may be missing: readers drop what they have seen.

        Raises: JobNotFound – this incarnation was deleted; StoreUnavailable – the connection is lost, create a
        new watch; StoreError – waiting longer does not help.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop watching and end a ``read`` in progress. Harmless when repeated."""


class Store(ABC):
    """Jobs and their cells: all that Managers, subscriptions, barriers and callbacks use.

    Threads share one store object; it may be created before a fork and used after it. Worker records are added by
    ``WorkerRegistry``, migrations by ``Migratable``.

    *Atomic.* Each method is one atomic step: it happens completely or, when it raises, not at all (``delete_job``,
    ``purge`` and the lists describe their own limits). *Cells are the truth*: the tallies, indexes and change feed of
    a job change in the same step as the cell. *Incarnations.* A method that takes a ``JobRef`` raises ``JobNotFound``
    unless exactly this incarnation is stored. *Clock.* Times come from the store's clock; within a job they never
    decrease. *Errors.* ``StoreUnavailable`` when the store cannot be reached or does not answer within its timeout,
    ``StoreError`` when it refuses a call; both are raised ``from`` the client's error and contain no password.
    *Signals.* A call that a signal handler interrupts (a soft time limit, Ctrl-C) was applied or not applied, and
    holds no lock afterwards.

    Values passed in and returned belong to the caller: changing them changes nothing in the store.
    Source: design.md, "The store contract"; ``celery_statemanager.testing.CoreContract`` tests it.
    """

    @classmethod
    @abstractmethod
    def from_url(cls, url: str, *, timeout: float, **options: Any) -> Self:
        """Create a store from its URL; validates without connecting where possible.

        Args:
            timeout: seconds after which a call raises ``StoreUnavailable``.
            options: the other arguments of ``open_store``; a store refuses those it does not know.

        Raises: ConfigurationError.
        """

    def require(self) -> None:  # noqa: B027 - most stores create nothing of their own
        """Check, without connecting, that the data exist, where the first call would create them, such as a file.

        Commands that only read call it to detect a mistyped address. Raises: ConfigurationError.
        """

    @abstractmethod
    def create_job(self, job: JobRecord) -> JobRecord:
        """Store a new job under ``job.key`` and return it with times and revision set.

        Raises: JobExists – a job is stored under this key, tombstoned or not.
        """

    @abstractmethod
    def get_job(self, key: JobKey) -> JobRecord:
        """Return the current job. Raises: JobNotFound."""

    @abstractmethod
    def update_job(self, job: JobRecord) -> tuple[str, ...] | None:
        """Replace the changeable fields of a job if the stored revision is still ``job.revision``.

        Changeable: latches, cancelled, submission, tombstoned_at, schema_version. The same step decides the job's
        latches again (a cancelled job settles once no cell of it is pending).

        Returns: the names of the latches that were decided; None if the revision has changed: read the job again.
        Raises: JobNotFound.
        """

    @abstractmethod
    def list_jobs(
        self,
        cursor: str | None = None,
        limit: int = 100,
        *,
        due: bool = False,
        tombstoned: bool = False,
        idle_before: int | None = None,
    ) -> Page:
        """Return a page of jobs in the store's own order. A job created meanwhile may be missing.

        Args:
            due: only jobs with ``JobRecord.due``. The cost does not grow with the other jobs.
            tombstoned: only jobs with ``JobRecord.tombstoned_at``; likewise.
            idle_before: only jobs whose last activity is earlier; likewise.
        """

    def list_runs(self, job_id: str, limit: int = 10) -> list[str | None]:
        """Return the run tokens of the jobs with this job_id, in any order; None stands for the one without a token.

        Only error messages use it. A store that finds jobs by their job_id overrides it: this one reads at most 1,000
        job records.
        """
        found: list[str | None] = []
        cursor: str | None = None
        for _ in range(10):
            page = self.list_jobs(cursor)
            found += [job.run_token for job in page.jobs if job.job_id == job_id]
            cursor = page.cursor
            if cursor is None or len(found) >= limit:
                break
        return found[:limit]

    @abstractmethod
    def delete_job(self, job: JobRecord, *, if_idle: bool = False, purge: int = 0) -> bool:
        """Delete a job and all its cells for every reader and writer, at once at any size.

        Leftover rows are invisible and removed by ``purge``. The key is free for a new job.

        Args:
            if_idle: only if neither its revision nor its last activity has changed since ``job`` was read.
            purge: also remove about this many of its own rows. The cost does not grow with other jobs' leftovers.

        Returns: whether it was deleted. Raises: JobNotFound.
        """

    @abstractmethod
    def purge(self, limit: int = 1_000) -> int:
        """Remove at most about ``limit`` leftover rows of deleted jobs; return their number, 0 when none is left."""

    @abstractmethod
    def write(self, ref: JobRef, write: Write) -> WriteReply:
        """Write one cell: the single step of rules R2–R4, R13–R15 and R17.

        In this order: the incarnation is checked; a repeated event id changes nothing and returns the present
        cell; ``write.begin`` takes an attempt; fences are checked; the cell gets its next version; the later stages
        of a row that failed for good are blocked; the latches of a planned job are decided. ``transitions`` and
        ``stores.steps`` define it exactly.

        Raises: JobNotFound, AttemptSuperseded, JobCancelled, BeginRefused.
        """

    @abstractmethod
    def begin(self, ref: JobRef, begin: Begin) -> BeginReply:
        """Take the next attempt of a cell, or return why not.

        Begun: the cell is STARTED, keeps its payload, and the later stages that its failure had blocked are not
        started again. Raises: JobNotFound.
        """

    @abstractmethod
    def get_cell(self, ref: JobRef, tag: str, task_index: int) -> Cell | None:
        """Return all that is stored of a cell; None if it was never written. Raises: JobNotFound."""

    @abstractmethod
    def lowest(self, ref: JobRef, scope: Scope) -> State:
        """Return the lowest cell of a scope (rule R5), missing cells included. O(tags · log n). Raises: JobNotFound."""

    @abstractmethod
    def column_summaries(
        self, ref: JobRef, tag: str | None = None, *, indexes: bool = False
    ) -> tuple[JobRecord, list[Column]]:
        """Return the job and its expected columns, or one column, as of one moment.

        O(tags · log n) without ``indexes``. Raises: JobNotFound.
        """

    @abstractmethod
    def list_states(self, ref: JobRef, scope: Scope) -> Iterator[State]:
        """Return the written cells of a scope by (timestamp, tag, task_index), in bounded memory where possible.

        Raises: JobNotFound, at the call.
        """

    @abstractmethod
    def watch(self, ref: JobRef, scope: Scope) -> Watch:
        """Watch a job: every change committed after the return is read. Raises: JobNotFound."""

    @abstractmethod
    def now(self) -> int:
        """Return the store's time, in microseconds since the epoch."""

    def expect_forks(self) -> None:  # noqa: B027 - most stores survive forks as they are
        """Hint that this process will keep forking while other threads use the store.

        The store then holds nothing that could harm the children; calls may become slower. The children are not
        affected.
        """

    def close(self) -> None:  # noqa: B027 - a store may hold nothing to release
        """Release the connections of this process. The store may be used again and reconnects."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
