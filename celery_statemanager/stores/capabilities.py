"""The capabilities of stores beyond jobs and cells. Each one is a type, which functions require by annotation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

from celery_statemanager.records import JobRecord, JobRef, OpenAttempt, StoredCell, WorkerRecord
from celery_statemanager.stores.base import Store


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


class FullStore(WorkerRegistry, Migratable):
    """A store with every capability: the type of the stores in this package and of what ``open_store`` returns."""
