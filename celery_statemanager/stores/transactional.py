"""The base class of stores that run their atomic steps in Python, inside a transaction of the database."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

from celery_statemanager.records import (
    Begin,
    BeginReply,
    Claimed,
    ClaimRequest,
    JobRecord,
    JobRef,
    OutboxState,
    Reset,
    StoredCell,
    Write,
    WriteReply,
)
from celery_statemanager.stores import steps
from celery_statemanager.stores.base import Store
from celery_statemanager.stores.steps import Transaction

CellKey = tuple[str, int]
"""A tag and a task_index: the key of a cell within its job."""

Reply = TypeVar("Reply")


class TransactionalStore(Store):
    """Implement the atomic steps over the operations of a ``Transaction``.

    A subclass implements ``transact`` and the remaining methods of ``Store``. ``rewrite_cells`` belongs to
    ``Migratable``; ``get_outbox``, ``claim`` and ``reset_row`` to ``Outbox``. Inherit from ``TransactionalStore`` first
    to use them there.
    """

    @abstractmethod
    def transact(self, ref: JobRef, step: Callable[[Transaction], Reply], key: CellKey | None = None) -> Reply:
        """Run a step on one job in one transaction: commit when it returns, change nothing when it raises.

        A step raises its refusals before its first change, so a store whose writes cannot fail needs no rollback.
        A store may run the step again, with a new ``Transaction``, if another process changed the job.

        Args:
            key: the cell that the step reads first, for stores that read it together with the job.

        Raises: JobNotFound; what the step raises.
        """

    def write(self, ref: JobRef, write: Write) -> WriteReply:
        return self.transact(ref, lambda tx: steps.write(tx, write), (write.tag, write.task_index))

    def begin(self, ref: JobRef, begin: Begin) -> BeginReply:
        return self.transact(ref, lambda tx: steps.begin(tx, begin), (begin.tag, begin.task_index))

    def update_job(self, job: JobRecord) -> tuple[str, ...] | None:
        return self.transact(job.ref, lambda tx: steps.update_job(tx, job))

    def rewrite_cells(self, ref: JobRef, cells: Sequence[StoredCell]) -> int:
        """Replace cells as ``Migratable.rewrite_cells`` describes."""
        return self.transact(ref, lambda tx: steps.rewrite(tx, cells))

    def get_outbox(self, ref: JobRef) -> OutboxState:
        """Return which rows are claimed as ``Outbox.get_outbox`` describes."""
        return self.transact(ref, lambda tx: tx.outbox())

    def reset_row(self, ref: JobRef, reset: Reset) -> bool:
        """Reset a row as ``Outbox.reset_row`` describes."""
        return self.transact(ref, lambda tx: steps.reset_row(tx, reset), (reset.tag, reset.task_index))

    def claim(self, ref: JobRef, request: ClaimRequest) -> Claimed:
        """Claim rows as ``Outbox.claim`` describes."""
        return self.transact(ref, lambda tx: steps.claim(tx, request))
