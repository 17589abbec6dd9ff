"""The part of the store contract that every store implements: jobs, cells, aggregates and live changes."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from celery_statemanager.limits import parse_cursor
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
    Listed,
    Page,
    Write,
    WriteReply,
)

if TYPE_CHECKING:
    from typing_extensions import Self


class Watch(ABC):
    """The live changes of a job since ``Store.watch`` was called. One thread reads it; any thread may close it."""

    @property
    @abstractmethod
    def cursor(self) -> str:
        """The position up to which changes were returned, for ``Store.watch`` in any process.

        At most 100 letters, digits, ``.``, ``-`` and ``_`` of ASCII.
        """

    @abstractmethod
    def read(self, timeout: float) -> Batch:
        """Wait for changes; return an empty batch after ``timeout`` seconds, or at once when closed.

        The last version of every cell is returned. Between two reads only the newest version of a cell is kept, so a
        slow reader costs at most one entry per cell. A version may be returned twice, so readers ignore versions that
        they have seen. After ``resync``, earlier versions may be missing, and all versions may be lower than before,
        because the store was restored from a copy.

        Raises: JobNotFound – this incarnation was deleted; StoreUnavailable – the connection was lost, create a new
        watch; StoreError – a new watch would fail too.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop watching and end a ``read`` in progress. Repeated calls have no effect."""


class Store(ABC):
    """Jobs and their cells: the part that Managers, subscriptions, barriers and callbacks use.

    Threads share one store object; it may be created before a fork and used after it. Worker records are added by
    ``WorkerRegistry``, migrations by ``Migratable``.

    *Atomic.* Each method is one atomic step: it is applied completely or, when it raises, not at all (``delete_job``,
    ``purge`` and the lists describe their own limits). *Cells are the source of truth.* The tallies, indexes and change
    feed of a job change in the same step as the cell. *Incarnations.* A method that takes a ``JobRef`` raises
    ``JobNotFound`` unless exactly this incarnation is stored. *Clock.* Times come from the store's clock; within a job
    they never decrease. *Errors.* ``StoreUnavailable`` when the store cannot be reached or does not answer within its
    timeout, ``StoreError`` when it refuses a call; both are raised ``from`` the client's error and contain no password.
    *Signals.* A call that a signal handler interrupts (a soft time limit, Ctrl-C) was applied or not applied, and holds
    no lock afterwards.

    Values passed in and returned belong to the caller: changing them changes nothing in the store.
    Source: design.md, "The store contract"; ``celery_statemanager.testing.CoreContract`` tests it.
    """

    @classmethod
    @abstractmethod
    def from_url(cls, url: str, *, timeout: float, **options: Any) -> Self:
        """Create a store from its URL; validates without connecting where possible.

        Args:
            timeout: seconds after which a call raises ``StoreUnavailable``.
            options: the other arguments of ``open_store``; a store refuses unknown ones.

        Raises: ConfigurationError.
        """

    def require(self) -> None:  # noqa: B027 - most stores create nothing of their own
        """Check, without connecting, that the data exist if the first call would otherwise create them (a file).

        Commands that only read data call it to detect a mistyped address. Raises: ConfigurationError.
        """

    def server_warnings(self) -> list[str]:
        """Return a sentence for each readable setting of the server that may cause the loss of states.

        Workers log them at their start, and ``list-state`` prints them. Raises: StoreUnavailable.
        """
        return []

    def create_tables(self) -> None:  # noqa: B027 - most stores have none
        """Create the tables of the store, or upgrade the tables of an earlier release, if the store has tables.

        A store also creates its tables at first use, if it has the right to. Raises: StoreError.
        """

    @abstractmethod
    def create_job(self, job: JobRecord) -> JobRecord:
        """Store a new job under ``job.key`` and return it with its times and revision.

        Raises: JobExists – a job is stored under this key, tombstoned or not; StoreError – it has a ``flow``, and no
            draft is stored, see ``Outbox``.
        """

    @abstractmethod
    def get_job(self, key: JobKey) -> JobRecord:
        """Return the current job. Raises: JobNotFound."""

    @abstractmethod
    def update_job(self, job: JobRecord) -> tuple[str, ...] | None:
        """Replace the changeable fields of a job if the stored revision is still ``job.revision``.

        Changeable: metadata, latches, cancelled, flow, generation, policy, tombstoned_at, schema_version. The same step
        decides the job's latches again (a cancelled job settles once no cell of it is pending), unless rows are being
        reset.

        Returns: the names of the latches that were decided, or None if the revision has changed. In that case, read the
        job again.
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

    def newest_jobs(self, cursor: str | None = None, limit: int = 100) -> list[Listed]:
        """Return jobs by their creation, the newest first; fewer than ``limit`` only at the end.

        A list that continues after the cursor of one of its jobs contains each job that exists all the time exactly
        once, whatever is created or deleted meanwhile. The default implementation reads all job records. In a store
        that overrides it, the cost does not grow with the number of jobs.

        Args:
            cursor: continue after the job with this ``Listed.cursor``. None begins with the newest job.

        Raises: ValueError – the cursor is invalid.
        """
        before = None if cursor is None else parse_cursor(cursor)
        older: list[tuple[tuple[int, str], JobRecord]] = []
        page = Page([], "")
        while page.cursor is not None:
            page = self.list_jobs(page.cursor or None, 1_000)
            found = (((job.created_at, job.incarnation), job) for job in page.jobs)
            older += [each for each in found if before is None or each[0] < before]
        newest = heapq.nlargest(limit, older, key=lambda each: each[0])
        return [Listed(job, f"{created_at} {incarnation}") for (created_at, incarnation), job in newest]

    def list_runs(self, job_id: str, limit: int = 10) -> list[str | None]:
        """Return the run tokens of the jobs with this job_id, in any order; None for the job without a token.

        Only error messages use it. The default implementation searches at most 1,000 job records; a store that can find
        jobs by their job_id overrides it.
        """
        runs: list[str | None] = []
        cursor: str | None = None
        for _ in range(10):
            page = self.list_jobs(cursor)
            runs += [job.run_token for job in page.jobs if job.job_id == job_id]
            cursor = page.cursor
            if cursor is None or len(runs) >= limit:
                break
        return runs[:limit]

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

        The step consists of these parts, in this order; ``transitions`` and ``stores.steps`` define them exactly:

        1. Check the incarnation.
        2. If the event id is that of the present cell, return the cell without a change.
        3. If ``write.begin`` is set, take an attempt.
        4. Check the fences.
        5. Store the cell under its next version.
        6. If the failure of the cell is final, block the later stages of its row.
        7. Decide the latches of a planned job.

        Raises: JobNotFound, AttemptSuperseded, JobCancelled, BeginRefused.
        """

    @abstractmethod
    def begin(self, ref: JobRef, begin: Begin) -> BeginReply:
        """Take the next attempt of a cell, or return the reason for the refusal.

        A cell that begins becomes STARTED and keeps its payload. Later stages that its failure had blocked become
        NOT_STARTED again. If the deadline of the job has passed, the verdict is EXPIRED; the caller cancels the job.
        Raises: JobNotFound.
        """

    @abstractmethod
    def get_cell(self, ref: JobRef, tag: str, task_index: int) -> Cell | None:
        """Return a cell with all its fields, or None if it was never written. Raises: JobNotFound."""

    @abstractmethod
    def lowest(self, ref: JobRef, scope: Scope) -> State:
        """Return the lowest cell of a scope (rule R5), missing cells included. O(tags · log n). Raises: JobNotFound."""

    @abstractmethod
    def column_summaries(
        self, ref: JobRef, tag: str | None = None, *, indexes: bool = False
    ) -> tuple[JobRecord, list[Column]]:
        """Return the job and its expected columns, or one column, as a consistent snapshot.

        O(tags · log n) without ``indexes``. Raises: JobNotFound.
        """

    @abstractmethod
    def list_states(self, ref: JobRef, scope: Scope) -> Iterator[State]:
        """Return the written cells of a scope by (timestamp, tag, task_index), in bounded memory where possible.

        Raises: JobNotFound, at the call.
        """

    @abstractmethod
    def watch(self, ref: JobRef, scope: Scope, since: str | None = None) -> Watch:
        """Watch a job. The watch returns every change that is committed after this call.

        Args:
            since: a cursor of this incarnation. The watch also returns what changed between this position and the call;
                reads with a timeout of 0 return all of it. ``job_changed`` may be set without a change. If the changed
                cells are not known for certain, because the store keeps fewer changes or was restored from a copy, the
                first read returns ``resync``.

        Raises: JobNotFound; ValueError – the cursor is invalid.
        """

    @abstractmethod
    def now(self) -> int:
        """Return the store's time, in microseconds since the epoch."""

    def expect_forks(self) -> None:  # noqa: B027 - most stores survive forks as they are
        """Hint that this process will keep forking while other threads use the store.

        The store then holds no resources that are unsafe in forked children, which may make calls slower. The hint does
        not apply to the children.
        """

    def close(self) -> None:  # noqa: B027 - a store may hold nothing to release
        """Release the connections of this process. The store may be used again and reconnects."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
