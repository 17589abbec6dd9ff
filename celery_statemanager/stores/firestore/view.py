"""What one try of a step knows and changes: the ``steps.Transaction`` of this store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from celery_statemanager.records import Cell, JobRecord, Tally
from celery_statemanager.stores.firestore import tallies
from celery_statemanager.stores.firestore.database import Got
from celery_statemanager.stores.firestore.documents import CachedJob, KnownJob, cell_in, counted_as_failed, is_ours

Place = tuple[str, int]

NOW = -1
"""Stands for the server's time until the commit's answer tells it."""
UNDECIDED = Tally(pending=1)
"""A sum from which no latch falls: latches are decided after the commit."""


@dataclass
class View:
    """What is known of the documents of a step.

    Attributes:
        fresh: they were read for this step; else they are as this process last saw them, or thought missing.
    """

    job: KnownJob
    cells: dict[Place, CachedJob]
    fresh: bool


@dataclass
class Done:
    """A step that was committed: the cells it changed, and where it left what it was about."""

    job: KnownJob
    puts: dict[Place, tuple[Cell | None, Cell]]


@dataclass
class StepTransaction:
    """The ``steps.Transaction`` of one try."""

    view: View
    primary: Place
    read: Callable[[Place], CachedJob] | None
    puts: dict[Place, tuple[Cell | None, Cell]] = field(default_factory=dict)
    now: int = NOW

    @property
    def job(self) -> JobRecord:
        return self.view.job.job

    def cell(self, tag: str, task_index: int) -> Cell | None:
        place = tag, task_index
        if place in self.puts:
            return self.puts[place][1]
        known = self.view.cells.get(place)
        if known is None:
            # A later stage of the row. What is written to it holds only if it is as was thought; but whether a begin
            # frees it must be known, unless its earlier stage was never written: then nothing of it was blocked.
            thought = self.read is None or self.view.cells[self.primary].cell is None
            known = self.view.cells[place] = CachedJob() if self.read is None or thought else self.read(place)
        return known.cell

    def put(self, tag: str, task_index: int, old: Cell | None, new: Cell) -> None:
        before = self.puts[tag, task_index][0] if (tag, task_index) in self.puts else old
        self.puts[tag, task_index] = before, new

    def total(self) -> Tally:
        return UNDECIDED

    def put_job(self, job: JobRecord) -> None:
        raise AssertionError("latches are decided after the commit")

    @property
    def reopens(self) -> bool:
        """Whether an expected cell that had ended has not any more: who decides a latch meanwhile must see it."""
        return any(
            old is not None and old.final and not new.final and tallies.is_expected(self.job, *place)
            for place, (old, new) in self.puts.items()
        )


def known_of(job: JobRecord, got: Got, name: str) -> CachedJob:
    """Take a cell's document that was read; one of an older incarnation is only there to be written over."""
    document = got.documents.get(name)
    if document is None:
        return CachedJob()
    fields = document.fields
    cell = cell_in(fields, job)
    if cell is None:
        return CachedJob(None, document.stamp)
    operations = fields.get("operations") or []
    return CachedJob(cell, document.stamp, operations, is_ours(fields, job), counted_as_failed(fields))


def set_time(cell: Cell, now: int) -> None:
    """Give a cell that a step has made, and nobody has seen yet, the server's time."""
    if cell.timestamp == NOW:
        cell.timestamp = now
        if cell.began_at == NOW:
            cell.began_at = now
