"""The transaction of one try of a step: the documents it uses and the cells it changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from celery_statemanager.records import Cell, JobRecord, OutboxState, Tally
from celery_statemanager.stores.firestore import tallies
from celery_statemanager.stores.firestore.database import BatchRead
from celery_statemanager.stores.firestore.documents import (
    CellDocument,
    JobDocument,
    cell_in,
    counted_as_failed,
    is_ours,
)
from celery_statemanager.stores.transactional import CellKey

NOW = -1
"""Stands for the server's time, which only the answer of the commit contains."""

UNDECIDED = Tally(pending=1)
"""A total that decides no latch, because latches are decided after the commit."""


@dataclass
class StepDocuments:
    """The documents of a step.

    Attributes:
        fresh: whether they were read for this step. Otherwise they come from this process's cache, and a cell that is
            not in the cache is assumed not to exist.
    """

    job: JobDocument
    cells: dict[CellKey, CellDocument]
    fresh: bool


@dataclass
class StepResult:
    """The changes of a committed step: the content of each changed cell before and after it."""

    job: JobDocument
    puts: dict[CellKey, tuple[Cell | None, Cell]]


@dataclass
class StepTransaction:
    """The ``steps.WriteTransaction`` of one try.

    Attributes:
        primary: the cell that the step writes or begins.
        read: reads another cell.
        begins: whether the step takes an attempt.
    """

    documents: StepDocuments
    primary: CellKey
    read: Callable[[CellKey], CellDocument]
    begins: bool
    puts: dict[CellKey, tuple[Cell | None, Cell]] = field(default_factory=dict)
    now: int = NOW

    @property
    def job(self) -> JobRecord:
        return self.documents.job.job

    def cell(self, tag: str, task_index: int) -> Cell | None:
        key, cells = (tag, task_index), self.documents.cells
        if key in self.puts:
            return self.puts[key][1]
        document = cells.get(key)
        if document is None:
            document = cells[key] = self.read(key) if self._must_read(key) else CellDocument()
        return document.cell

    def _must_read(self, key: CellKey) -> bool:
        """Return whether another stage of the row must be read. If not, it does not exist; the commit verifies that.

        A begin must know whether it unblocks a later stage, and what an earlier one lacks. So must a late end. A stage
        that was never written has blocked none.
        """
        tag, task_index = self.primary
        earlier = self.job.plan is not None and key[0] in self.job.plan.before(tag, task_index)
        before = self.documents.cells[self.primary].cell
        return earlier or (before is not None and (self.begins or before.awaits_end))

    def put(self, tag: str, task_index: int, old: Cell | None, new: Cell) -> None:
        before = self.puts[tag, task_index][0] if (tag, task_index) in self.puts else old
        self.puts[tag, task_index] = before, new

    def total(self) -> Tally:
        return UNDECIDED

    def put_job(self, job: JobRecord) -> None:
        raise AssertionError("latches are decided after the commit")

    def outbox(self) -> OutboxState:
        raise AssertionError("rows are claimed after the commit")

    def put_outbox(self, state: OutboxState) -> None:
        raise AssertionError("rows are claimed after the commit")

    @property
    def reopens(self) -> bool:
        """Whether an expected cell was final and no longer is. A concurrent decision must then fail."""
        return any(
            old is not None and old.final and not new.final and tallies.is_expected(self.job, *key)
            for key, (old, new) in self.puts.items()
        )


def cell_document(job: JobRecord, batch: BatchRead, name: str) -> CellDocument:
    """Decode a cell's document. One of an older incarnation has no content, and the next write replaces it."""
    document = batch.documents.get(name)
    if document is None:
        return CellDocument()
    fields = document.fields
    cell = cell_in(fields, job)
    if cell is None:
        return CellDocument(None, document.update_time)
    operations = fields.get("operations") or []
    return CellDocument(cell, document.update_time, operations, is_ours(fields, job), counted_as_failed(fields))


def set_time(cell: Cell, now: int) -> None:
    """Set the server's time in a cell that a step has created and not returned yet."""
    if cell.timestamp == NOW:
        cell.timestamp = now
        if cell.began_at == NOW:
            cell.began_at = now
