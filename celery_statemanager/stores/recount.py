"""Aggregates computed from all cells of a job, for stores without tallies or jobs that have none. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from celery_statemanager import aggregate
from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import Scope, State
from celery_statemanager.records import Cell, Column, JobRecord, Tally
from celery_statemanager.transitions import tally_of

Cells = Mapping[tuple[str, int], Cell]
"""All written cells of a job by tag and row, including callback runs and cells outside of the plan."""


def is_counted(job: JobRecord, tag: str, task_index: int) -> bool:
    """Return whether a cell counts in its column. Callback runs and cells outside of a planned tag's rows do not."""
    if task_index < 0:
        return False
    rows = job.plan.columns.get(tag) if job.plan else None
    return rows is None or task_index in rows


def total(job: JobRecord, cells: Cells) -> Tally:
    """Return the sum of the tallies of the expected columns."""
    columns = _by_column(job, cells)
    found = Tally()
    for tag in aggregate.expected_tags(job, columns):
        found = found.plus(_tally(job, tag, columns.get(tag, {})))
    return found


def column_summaries(job: JobRecord, cells: Cells, tag: str | None = None, *, indexes: bool = True) -> list[Column]:
    """Return the expected columns, or one."""
    columns = _by_column(job, cells)
    tags = aggregate.expected_tags(job, columns) if tag is None else [tag]
    return [_column(job, each, columns.get(each, {}), indexes=indexes) for each in tags]


def lowest(job: JobRecord, cells: Cells, scope: Scope) -> State:
    """Return the lowest cell of a scope, missing cells included."""
    columns, row = _by_column(job, cells), scope.task_index
    tags = aggregate.expected_tags(job, columns) if scope.tag is None else [scope.tag]
    if row is None:
        found = [_lowest(job, tag, columns.get(tag, {})) for tag in tags]
    else:
        counts = [tag for tag in tags if scope.tag is not None or aggregate.expects(job, tag, row)]
        found = [aggregate.visible_state(job, tag, row, cells.get((tag, row))) for tag in counts]
    least = aggregate.lowest(state for state in found if state is not None)
    return least or aggregate.missing_state(job, scope.tag or "", row or 0)


def _by_column(job: JobRecord, cells: Cells) -> dict[str, dict[int, Cell]]:
    found: dict[str, dict[int, Cell]] = {}
    for (tag, row), cell in cells.items():
        if is_counted(job, tag, row):
            found.setdefault(tag, {})[row] = cell
    return found


def _column(job: JobRecord, tag: str, cells: Mapping[int, Cell], *, indexes: bool) -> Column:
    rows = aggregate.expected_rows(job, tag)
    column = Column(tag, len(rows), _tally(job, tag, cells), _lowest(job, tag, cells))
    if indexes:
        started = IndexSet(row for row, cell in cells.items() if cell.status != 0)
        negative = IndexSet(row for row, cell in cells.items() if cell.status < 0)
        column.not_run = IndexSet(row for row, cell in cells.items() if tally_of(cell).not_run)
        column.failed = negative.without(column.not_run)
        column.running = IndexSet(row for row, cell in cells.items() if cell.status > 0 and not cell.terminal)
        column.stalled = IndexSet(row for row, cell in cells.items() if cell.stall.since)
        column.missing = rows.without(started)
    return column


def _tally(job: JobRecord, tag: str, cells: Mapping[int, Cell]) -> Tally:
    found = Tally()
    for row, cell in cells.items():
        found = found.plus(tally_of(cell, is_last=aggregate.ends_row(job, tag, row)))
    return found


def _lowest(job: JobRecord, tag: str, cells: Mapping[int, Cell]) -> State | None:
    found = [aggregate.visible_state(job, tag, row, cell) for row, cell in cells.items()]
    missing = aggregate.expected_rows(job, tag).without(IndexSet(cells))
    if missing:
        found.append(aggregate.missing_state(job, tag, missing.first))
    return aggregate.lowest(found)
