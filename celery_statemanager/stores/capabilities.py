"""The capabilities of stores beyond jobs and cells. Each one is a type, which functions require by annotation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, TypeVar

from celery_statemanager.errors import StoreError
from celery_statemanager.indexset import IndexSet
from celery_statemanager.records import (
    Claimed,
    ClaimRequest,
    JobKey,
    JobRecord,
    JobRef,
    OpenAttempt,
    OutboxState,
    Reset,
    StoredCell,
    WorkerRecord,
)
from celery_statemanager.stores.base import Store

T = TypeVar("T")


@dataclass(frozen=True)
class CallerTransaction:
    """A transaction that the caller of ``submit`` has begun.

    Attributes:
        database: the caller's name for the database, for example an alias of Django.
        connection: the connection of the Python DB-API on which the transaction is open.
    """

    database: str
    connection: Any


class JobCreator(Protocol):
    """The calls that create a job. Each store has them, see ``Store`` and ``Outbox``."""

    def now(self) -> int:
        """Return the time of the store."""

    def get_job(self, key: JobKey) -> JobRecord:
        """Return the current job. Raises: JobNotFound."""

    def add_block(self, ref: JobRef, first: int, data: bytes, lease: float) -> None:
        """Store messages of the draft of a job."""

    def drop_draft(self, ref: JobRef) -> None:
        """Delete a draft."""

    def create_job(self, job: JobRecord) -> JobRecord:
        """Create the job of a draft. Raises: JobExists."""


class WorkerRegistry(Store):
    """A store that also keeps worker records and finds open attempts, as leases and the sweep require (rule R16).

    ``celery_statemanager.testing.WorkerRegistryContract`` tests it.
    """

    @abstractmethod
    def put_worker(self, worker_id: str, body: str, lease: float) -> None:
        """Write a worker's whole record; its lease ends ``lease`` seconds from now, at once if 0.

        Args:
            body: up to 800 KiB as UTF-8.
        """

    @abstractmethod
    def try_acquire(self, name: str, holder: str, seconds: float) -> bool:
        """Acquire or renew a lock with a time limit, stored as the record of a worker ``name``.

        Atomic: of any number of concurrent calls, one succeeds. Returns: False while another holder has it.
        """

    @abstractmethod
    def get_worker(self, worker_id: str) -> WorkerRecord | None:
        """Return one worker's record, even if its lease has expired; None if there is none.

        The cost does not grow with the other records.
        """

    @abstractmethod
    def list_workers(self) -> Iterator[WorkerRecord]:
        """Yield each worker record once, including those with expired leases, in bounded memory.

        Compare leases with ``now``. A record that is written or deleted meanwhile may be missing or outdated.
        """

    @abstractmethod
    def drop_worker(self, worker_id: str) -> None:
        """Delete a worker's record. Without a record, the call has no effect."""

    @abstractmethod
    def list_open_attempts(self) -> Iterator[OpenAttempt]:
        """Yield every attempt that has an owner, in any order and in bounded memory.

        Such an attempt is open, or has ended with ``Write.awaits_delivery``.

        The cost grows only with the number of these attempts. One that begins, ends or changes its owner meanwhile may
        be missing or be yielded twice.
        """


class Outbox(WorkerRegistry):
    """A store that keeps the messages of jobs, and which of them are to be published (rule R19).

    It has worker records, because they show which publishers are alive.

    The messages of a job are stored in blocks before the job is created. Until ``create_job`` succeeds, the blocks are
    a draft: no reader sees it, and other jobs may use the same key.
    ``celery_statemanager.testing.OutboxContract`` tests it.
    """

    @abstractmethod
    def add_block(self, ref: JobRef, first: int, data: bytes, lease: float) -> None:
        """Store the messages of the rows from ``first`` on. A block that is added again replaces the first one.

        The block of row 0 creates the draft, so it must be the first one.

        Args:
            data: any bytes, up to 64 MiB.
            lease: seconds from now for which the draft is kept. ``create_job`` must follow within this time.

        Raises: StoreError – ``first`` is not 0 and the draft was dropped, so its earlier blocks are missing.
        """

    @abstractmethod
    def get_block(self, ref: JobRef, row: int) -> tuple[int, bytes] | None:
        """Return the block with the messages of a row, and the first row of the block; None if there is none.

        The blocks of a draft, and those of a job that is being deleted, may be returned.
        """

    def join(self, transaction: CallerTransaction) -> JobCreator | None:
        """Return an object that creates jobs in a transaction of the caller.

        It uses only the caller's connection, because another connection could wait for locks of the transaction. Other
        connections do not see its jobs before the commit. After a rollback, its jobs do not exist.

        Returns: None if the data of the store is not in the database of the transaction.
        """
        return None

    @abstractmethod
    def drop_draft(self, ref: JobRef) -> None:
        """Delete the blocks of a draft. Without a draft, the call has no effect."""

    @abstractmethod
    def drop_expired_drafts(self) -> int:
        """Delete the drafts whose lease has ended; return their number.

        The cost does not grow with the number of jobs. ``create_job`` then raises ``StoreError``.
        """

    @abstractmethod
    def get_value(self, ref: JobRef, row: int) -> str | None:
        """Return what a row keeps of its newest finished stage, see ``Write.value``; None if nothing.

        Callbacks have rows too, see ``value_row``. The values of a job that is being deleted may be returned.
        """

    @abstractmethod
    def list_values(self, ref: JobRef, rows: IndexSet) -> Iterator[tuple[int, str]]:
        """Return what each of some rows keeps, in row order, without the rows that keep nothing.

        The values are read in pages of about ``VALUES_PAGE`` bytes, in bounded memory. One that changes meanwhile is
        returned as it was before or after, and those of a job that is deleted meanwhile may be missing.

        Raises: JobNotFound, at the call.
        """

    @abstractmethod
    def get_outbox(self, ref: JobRef) -> OutboxState:
        """Return which rows are claimed, and which are due again. Raises: JobNotFound."""

    @abstractmethod
    def claim(self, ref: JobRef, request: ClaimRequest) -> Claimed:
        """Claim rows to publish. ``stores.steps.claim`` defines the step exactly.

        A job that has settled or has no messages has nothing to claim. Of a cancelled job, only rows that have begun
        can be claimed. Raises: JobNotFound.
        """

    @abstractmethod
    def reset_row(self, ref: JobRef, reset: Reset) -> bool:
        """Reset a row that has not succeeded, and make its message due (rule R20). ``stores.steps`` defines it exactly.

        The cell and the later stages of its row become NOT_STARTED. They keep their payloads and attempt numbers; their
        next deliveries have new publication numbers, so that earlier ones are stale. No latch is decided.

        Returns: False if the row has succeeded, runs, or was reset in this generation; if the job is cancelled; or if
        the resets of this generation have ended.
        Raises: JobNotFound.
        """


VALUES_PAGE = 512 * 1024
"""Bytes of values that ``Outbox.list_values`` reads at once, if more than one."""


def read_ahead(pages: Iterator[list[T]]) -> Iterator[T]:
    """Return the elements of pages. The first page is read at the call, the others when they are needed."""
    first = next(pages, [])
    return chain(first, chain.from_iterable(pages))


def draft_expired(job: JobRecord | JobKey) -> StoreError:
    """Create the error for a job whose blocks were deleted before ``create_job``."""
    return StoreError(
        f"cannot create job {job.job_id!r}: its stored messages were deleted, because its submitter had stopped for "
        "too long; submit it again"
    )


class Migratable(Store):
    """A store that can migrate its jobs and cells to a later schema in place, as ``migrate_jobs`` requires.

    ``celery_statemanager.testing.MigratableContract`` tests it.
    """

    @abstractmethod
    def adopt_job(self, ref: JobRef, incarnation: str) -> JobRecord:
        """Set the incarnation of a job that another program created without one; its schema is 0 until migrated.

        From then on, the reference without an incarnation and its watches match no job. The job's states stay
        unchanged and readable. If the other program keeps no tallies, aggregates read all states until the job is
        migrated.

        Returns: the current job, even if another process adopted it first. Raises: JobNotFound.
        """

    @abstractmethod
    def outdated_cells(self, ref: JobRef, below: int) -> Iterator[StoredCell]:
        """Return the cells with an earlier schema than ``below``, including callback runs, in any order.

        Memory is bounded where possible. A cell that is written during the iteration may be returned as it was before,
        or be missing if this is its first write. A cell of another program has schema 0. Raises: JobNotFound.
        """

    @abstractmethod
    def rewrite_cells(self, ref: JobRef, cells: Sequence[StoredCell]) -> int:
        """Replace each cell by its content in a later layout, unless it has changed since it was read.

        Each replacement is atomic and is not a write: version, timestamp and event id are those of the given cell,
        the job's last activity stays, and watches need not report it. Tallies are updated. Status, attempt and owner
        must be unchanged.

        Returns: the number of cells replaced; cells written or rewritten by others meanwhile stay unchanged.
        Raises: JobNotFound.
        """


class FullStore(Outbox, Migratable):
    """A store with every capability: the type of the stores in this package and of what ``open_store`` returns."""
