"""Requeued messages that their broker has dropped, for example at the delivery limit of a RabbitMQ queue (rule R16)."""

from __future__ import annotations

from functools import cached_property

from celery_statemanager.leases import Report, cell_name, each_worker
from celery_statemanager.models import Status
from celery_statemanager.records import Cell, OpenAttempt, Write
from celery_statemanager.stores.capabilities import WorkerRegistry

PATIENCE = 3
"""Leases after which a requeued message that no worker has received counts as dropped."""

_DROPPED = "; the broker did not deliver it again"


class Overdue:
    """The attempts whose message the broker has not delivered again, as of one moment.

    Args:
        lease, now: in microseconds.
    """

    def __init__(self, store: WorkerRegistry, lease: int, now: int) -> None:
        self._store = store
        self._since = now - PATIENCE * lease
        self._now = now

    def includes(self, attempt: OpenAttempt) -> bool:
        """Return whether an attempt has waited for its delivery for too long, and no worker has received it."""
        if attempt.cell.timestamp > self._since:
            return False
        received = self._received
        return received is not None and cell_name(attempt.ref, attempt.tag, attempt.task_index) not in received

    @cached_property
    def _received(self) -> set[str] | None:
        """The names of the cells that live workers have received.

        None if that is unknown: no worker is alive, or a record does not list all of them.
        """
        alive = [each for each in each_worker(self._store) if each.lease_until > self._now]
        reports = [Report.from_record(each) for each in alive]
        if not reports or any("received" in each.cut or not each.readable for each in reports):
            return None
        return {cell_name(row.ref, row.tag, row.task_index) for each in reports for row in each.received}


def sent_again(tag: str, task_index: int, cell: Cell) -> Write:
    """Create the write that makes the message due again. It counts as a loss."""
    return Write.sent_back(tag, task_index, f"{_reason(cell)}: sent again", attempt=cell.attempt, counts_as_loss=True)


def rejected(tag: str, task_index: int, cell: Cell) -> Write:
    """Create the write that ends the cell of a message that was lost too often."""
    write = Write.never_begun(tag, task_index, int(Status.REJECTED), _reason(cell))
    write.attempt = cell.attempt
    return write


def _reason(cell: Cell) -> str:
    return f"{(cell.message or 'requeued').partition(_DROPPED)[0]}{_DROPPED}"
