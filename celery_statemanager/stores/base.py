"""The contract of a store: where jobs, cells and worker records are kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

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
    OpenAttempt,
    Page,
    StoredCell,
    WorkerRecord,
    Write,
    WriteReply,
)


class Watch(ABC):
    """The live changes of a job from the moment ``Store.watch`` returned; read by one thread, closed by any."""

    @abstractmethod
    def read(self, timeout: float) -> Batch:
        """Wait for changes; give an empty batch after ``timeout`` seconds, or at once when closed.

        Every cell's last version arrives. Between two reads only the newest version of a cell is kept, so a
        slow reader costs its writers and the store nothing more than one entry a cell. A version may come
        twice and, after ``resync``, older ones may be missing: readers drop what they have seen.

        Raises: JobNotFound – this incarnation was deleted; StoreUnavailable – the connection is lost, make a
        new watch; StoreError – waiting longer will not help.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop watching and end a ``read`` under way. Harmless when repeated."""


class Store(ABC):
    """Where states are kept. One synchronous object, shared by threads, made before a fork and used after it.

    *Atomic.* Each method is one atomic step: it happens wholly or, when it raises, not at all (``delete_job``,
    ``purge`` and the lists say how far they go). *Cells are the truth*: tallies, indexes and the change feed of
    a job alter in the same step as the cell. *Incarnations.* A method given a ``JobRef`` raises ``JobNotFound``
    unless exactly this incarnation is kept. *Clock.* Times are the store's own; within a job they never decrease.
    *Trouble.* ``StoreUnavailable`` when it cannot be reached or did not answer within its timeout, ``StoreError``
    when it refused; both ``from`` the client's error, with no password in their text.
    *Signals.* A call that a signal's handler breaks off (a soft time limit, Ctrl-C) was made or not, and keeps nothing
    taken that others need.

    Values given and returned are the caller's to keep: nothing stored changes through them.
    Source: design.md, "The store contract"; ``celery_statemanager.testing.StoreContract`` tests it.
    """

    @classmethod
    @abstractmethod
    def from_url(cls, url: str, *, timeout: float, **options: Any) -> Store:
        """Make a store from its URL without connecting where a bad URL can be told by itself.

        Args:
            timeout: seconds after which a call gives up with ``StoreUnavailable``.
            options: what else ``open_store`` was given; a store refuses what it does not know.

        Raises: ConfigurationError.
        """

    def require(self) -> None:  # noqa: B027 - most stores have nothing of their own to make
        """Say so if nothing is kept here yet and the first call would make the store itself, such as a file.

        For whoever only reads, and may have mistyped the address. Connects to nothing.
        Raises: ConfigurationError.
        """

    @abstractmethod
    def create_job(self, job: JobRecord) -> JobRecord:
        """Keep a new job under ``job.key`` and give it back with times and revision set.

        Raises: JobExists – a job is kept under this key, tombstoned or not.
        """

    @abstractmethod
    def get_job(self, key: JobKey) -> JobRecord:
        """Give the job as it is now. Raises: JobNotFound."""

    @abstractmethod
    def update_job(self, job: JobRecord) -> tuple[str, ...] | None:
        """Replace what may change of a job if the stored revision is still ``job.revision``.

        What may change: latches, cancelled, submission, tombstoned_at, schema_version. In the same step the
        job's latches are decided anew (a cancelled job settles once nothing of it is pending).

        Returns: the names of the latches that fell; None when the revision has moved on: read again.
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
        """List jobs in an order of the store's, a page at a time. A job created meanwhile may be missing.

        Args:
            due: only jobs with ``JobRecord.due``. The cost does not grow with the other jobs.
            tombstoned: only jobs with ``JobRecord.tombstoned_at``; likewise.
            idle_before: only jobs whose last activity is earlier; likewise.
        """

    @abstractmethod
    def delete_job(self, job: JobRecord, *, if_idle: bool = False, purge: int = 0) -> bool:
        """Make a job and all its cells gone for every reader and writer, at once at any size.

        What it leaves behind is invisible and removed by ``purge``. Its key is free for a new job.

        Args:
            if_idle: only if neither its revision nor its last activity has moved on since ``job`` was read.
            purge: remove about so many of its own rows as well. The cost does not grow with other jobs' leftovers.

        Returns: whether it was deleted. Raises: JobNotFound.
        """

    @abstractmethod
    def purge(self, limit: int = 1_000) -> int:
        """Remove at most about ``limit`` leftover rows of deleted jobs; give their number, 0 when none is left."""

    @abstractmethod
    def write(self, ref: JobRef, write: Write) -> WriteReply:
        """Write one cell: the one step of rules R2–R4, R13–R15 and R17.

        In this order: the incarnation is checked; a repeated event id changes nothing and gives the present
        cell; ``write.begin`` takes an attempt; fences; the cell gets its next version; later stages of a row
        that failed for good are blocked; latches of a planned job fall. ``transitions`` and ``stores.steps``
        say it exactly.

        Raises: JobNotFound, AttemptSuperseded, JobCancelled, BeginRefused.
        """

    @abstractmethod
    def begin(self, ref: JobRef, begin: Begin) -> BeginReply:
        """Take the next attempt of a cell, or say why not.

        Begun: the cell is STARTED, keeps its payload, and later stages that its failure had blocked are
        not started again. Raises: JobNotFound.
        """

    @abstractmethod
    def get_cell(self, ref: JobRef, tag: str, task_index: int) -> Cell | None:
        """Give all that is kept of a cell; None if it was never written. Raises: JobNotFound."""

    @abstractmethod
    def lowest(self, ref: JobRef, scope: Scope) -> State:
        """Give the lowest cell of a scope (rule R5), absent cells counted. O(tags · log n). Raises: JobNotFound."""

    @abstractmethod
    def column_summaries(
        self, ref: JobRef, tag: str | None = None, *, indexes: bool = False
    ) -> tuple[JobRecord, list[Column]]:
        """Give the job and its expected columns, or one column, as of one moment.

        O(tags · log n) without ``indexes``. Raises: JobNotFound.
        """

    @abstractmethod
    def list_states(self, ref: JobRef, scope: Scope) -> Iterator[State]:
        """Give the written cells of a scope by (timestamp, tag, task_index), in bounded memory where the store can.

        Raises: JobNotFound, at the call.
        """

    @abstractmethod
    def watch(self, ref: JobRef, scope: Scope) -> Watch:
        """Watch a job: every change committed after the return will be read. Raises: JobNotFound."""

    @abstractmethod
    def adopt_job(self, ref: JobRef, incarnation: str) -> JobRecord:
        """Give a job that another program made the incarnation it lacks, and schema 0 until its states are migrated.

        From then on the reference without an incarnation, its watches too, is that of no job. Its states stay as
        they are and readable; where the other program's are kept without tallies, aggregates read all of them until
        the job has a later schema.

        Returns: the job as it is by now, also where somebody else was faster. Raises: JobNotFound.
        """

    @abstractmethod
    def outdated_cells(self, ref: JobRef, below: int) -> Iterator[StoredCell]:
        """Give the cells of an earlier schema than that, runs of callbacks too, in no promised order.

        In bounded memory where the store can. A cell written meanwhile may come as it was, one first written
        meanwhile not at all; one that another program wrote has schema 0. Raises: JobNotFound.
        """

    @abstractmethod
    def rewrite_cells(self, ref: JobRef, cells: Sequence[StoredCell]) -> int:
        """Replace cells by what they say in a later layout, each if it is still as it was found.

        Each is an atomic step of its own. It is no write: version, timestamp and event id are those of the cell
        given, the job's last activity stays, watches need not tell it. Tallies follow. Status, attempt and owner
        must be as they were.

        Returns: how many were replaced; those written meanwhile, or rewritten by another, stay as they are.
        Raises: JobNotFound.
        """

    @abstractmethod
    def put_worker(self, worker_id: str, body: str, lease: float) -> None:
        """Write a worker's record, whole; it is alive for ``lease`` seconds from now. 0 ends it now.

        Args:
            body: up to 800 KiB as UTF-8.
        """

    @abstractmethod
    def try_acquire(self, name: str, holder: str, seconds: float) -> bool:
        """Take what one holder has at a time, for so long; who has it takes it anew. Kept as the worker ``name``.

        Atomic: of any number that ask at once, one gets it. Returns: False while another holder has it.
        """

    @abstractmethod
    def get_worker(self, worker_id: str) -> WorkerRecord | None:
        """Give one worker's record, alive or dead; None when there is none. The cost does not grow with the others."""

    @abstractmethod
    def list_workers(self) -> Iterator[WorkerRecord]:
        """Yield each worker record once, those of dead workers too, in bounded memory; judge their leases by ``now``.

        One that is written or dropped meanwhile may be missing, or be as it was.
        """

    @abstractmethod
    def drop_worker(self, worker_id: str) -> None:
        """Forget a worker's record. Harmless when there is none."""

    @abstractmethod
    def list_open_attempts(self) -> Iterator[OpenAttempt]:
        """Yield every open attempt that has an owner, in no promised order and bounded memory.

        The cost grows with those alone. One that begins, ends or changes hands meanwhile may be missing or come twice.
        """

    @abstractmethod
    def now(self) -> int:
        """Give the store's time, in microseconds since the epoch."""

    def expect_forks(self) -> None:  # noqa: B027 - most stores survive forks as they are
        """Be told that this process will go on to fork, while threads of it are inside calls.

        From now on it keeps nothing that could harm its children; calls may become slower. Children are not
        bound by it.
        """

    def close(self) -> None:  # noqa: B027 - a store may have nothing to let go of
        """Let go of connections of this process; the store may be used again and will reconnect."""

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
