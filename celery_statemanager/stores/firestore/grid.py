"""Aggregates from every cell of a job: for index sets, and for jobs of other programs, which keep no tallies."""

from __future__ import annotations

from collections.abc import Iterable

from celery_statemanager import aggregate
from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import Scope, State
from celery_statemanager.records import Cell, Column, JobRecord, Tally
from celery_statemanager.stores.firestore import tallies
from celery_statemanager.transitions import tally_of

Cells = dict[str, dict[int, Cell]]
"""By tag and row."""


def counted(job: JobRecord, cells: Iterable[tuple[str, int, Cell]]) -> Cells:
    """Sort cells by column, those that count in one."""
    found: Cells = {}
    for tag, row, cell in cells:
        if tallies.is_counted(job, tag, row):
            found.setdefault(tag, {})[row] = cell
    return found


def column(job: JobRecord, tag: str, cells: dict[int, Cell]) -> Column:
    """Count one column."""
    rows = aggregate.expected_rows(job, tag)
    total = Tally()
    for cell in cells.values():
        total = total.plus(tally_of(cell))
    made = Column(tag, len(rows), total, _lowest(job, tag, rows, cells))
    made.failed, made.running, made.missing = index_sets(rows, cells)
    return made


def survey(job: JobRecord, cells: Cells, tag: str | None) -> list[Column]:
    """Count the expected columns, or one."""
    tags = aggregate.expected_tags(job, cells) if tag is None else [tag]
    return [column(job, each, cells.get(each, {})) for each in tags]


def lowest(job: JobRecord, cells: Cells, scope: Scope) -> State:
    """Give the lowest cell of a scope, absent ones counted."""
    row = scope.task_index
    tags = aggregate.expected_tags(job, cells) if scope.tag is None else [scope.tag]
    if row is None:
        found = [column(job, tag, cells.get(tag, {})).lowest for tag in tags]
    else:
        counts = [tag for tag in tags if scope.tag is not None or aggregate.expects(job, tag, row)]
        found = [aggregate.seen(job, tag, row, cells.get(tag, {}).get(row)) for tag in counts]
    least = aggregate.lowest(state for state in found if state is not None)
    return least or aggregate.absent(job, scope.tag or "", row or 0)


def index_sets(rows: IndexSet, cells: dict[int, Cell]) -> tuple[IndexSet, IndexSet, IndexSet]:
    """Give the rows that failed, that run and that were not started."""
    failed = IndexSet(row for row, cell in cells.items() if cell.status < 0)
    running = IndexSet(row for row, cell in cells.items() if cell.status > 0 and not cell.terminal)
    started = IndexSet(row for row, cell in cells.items() if cell.status != 0)
    return failed, running, rows.without(started)


def _lowest(job: JobRecord, tag: str, rows: IndexSet, cells: dict[int, Cell]) -> State | None:
    found = [aggregate.seen(job, tag, row, cell) for row, cell in cells.items()]
    missing = rows.without(IndexSet(cells))
    if missing:
        found.append(aggregate.absent(job, tag, missing.first))
    return aggregate.lowest(found)
