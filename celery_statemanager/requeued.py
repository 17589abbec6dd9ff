"""What follows when a broker drops a requeued message, for example at the delivery limit of a RabbitMQ queue."""

from __future__ import annotations

from celery_statemanager.models import Status
from celery_statemanager.records import Cell, Write

_DROPPED = "; the broker did not deliver it again"


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
