"""The transaction of one try of a step: the documents it uses and the cells it changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from celery_statemanager.indexset import IndexSet
from celery_statemanager.records import Cell, JobRecord, OutboxState, Returned, Tally
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

UNDECIDED = Tally(pending=1, rows=-(2**40))
"""A total that decides no latch and leaves no room for claims, because both follow the commit."""


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
        resets: whether the step resets a row.
        may_be_returned: whether any row of the job was ever returned, as far as this process knows.
        values: what rows keep afterwards, if this changes.
        stored_outbox: the outbox after the step, with only the rows and claims of the step; None if it is not changed.
    """

    documents: StepDocuments
    primary: CellKey
    read: Callable[[CellKey], CellDocument]
    begins: bool = False
    resets: bool = False
    may_be_returned: bool = False
    puts: dict[CellKey, tuple[Cell | None, Cell]] = field(default_factory=dict)
    values: dict[int, str | None] = field(default_factory=dict)
    stored_outbox: OutboxState | None = None
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
            document = cells[key] = self.read(key) if self._must_read() else CellDocument()
        return document.cell

    def _must_read(self) -> bool:
        """Return whether a later stage of the row must be read. If not, it does not exist; the commit verifies that.

        A begin or a late end may unblock it. A stage that was never written has blocked none.
        """
        before = self.documents.cells[self.primary].cell
        return before is not None and (self.begins or before.awaits_end)

    def put(self, tag: str, task_index: int, old: Cell | None, new: Cell) -> None:
        before = self.puts[tag, task_index][0] if (tag, task_index) in self.puts else old
        self.puts[tag, task_index] = before, new

    def total(self) -> Tally:
        return UNDECIDED

    def put_job(self, job: JobRecord) -> None:
        raise AssertionError("latches are decided after the commit")

    def put_value(self, task_index: int, value: str | None) -> None:
        self.values[task_index] = value

    def outbox(self) -> OutboxState:
        """Return an outbox in which the row is returned if it can be. A commit removes it without reading it."""
        if self.stored_outbox is not None:
            return self.stored_outbox
        row = IndexSet([self.primary[1]])
        return OutboxState(returned=Returned(begun=row) if self.assumes_returned else Returned())

    def put_outbox(self, state: OutboxState) -> None:
        self.stored_outbox = state

    @property
    def assumes_returned(self) -> bool:
        """Whether the row can be returned before the step."""
        cell = self.documents.cells[self.primary].cell
        return self.may_be_returned or (cell is not None and cell.delivery.publication > 0)

    @property
    def returns_row(self) -> bool:
        """Whether the message of the cell is due again."""
        return self.stored_outbox is not None and bool(self.stored_outbox.returned)

    @property
    def requires_job(self) -> bool:
        """Whether the commit requires an unchanged job. Even a cancellation may be over, because a rerun ends it."""
        return self.resets or self.job.cancelled is not None or self._reopens

    @property
    def changes_job(self) -> bool:
        """Whether the step must make a concurrent decision fail. While rows are reset, there is none."""
        return self._reopens and not self.job.generation.rows_to_reset

    @property
    def _reopens(self) -> bool:
        """Whether a cell that decides a latch was final and no longer is."""
        return self.job.plan is not None and any(
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
