"""A simple and slow second implementation of the rules of aggregates, to check stores against."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from celery_statemanager.aggregate import summarize
from celery_statemanager.models import State, Status, Summary, fraction_of
from celery_statemanager.records import FRACTION_UNIT, Cell, JobRecord, Tally
from celery_statemanager.testing.kit import Grid

Cells = Mapping[tuple[str, int], Cell]
States = Mapping[tuple[str, int], State]


def read_grid(grid: Grid, tags: Iterable[str]) -> tuple[dict[tuple[str, int], Cell], dict[tuple[str, int], State]]:
    """Read every cell of a job one by one. Return the cells as stored and as readers see them."""
    places = [(tag, row) for tag in tags for row in range(grid.job.num_tasks)]
    return {place: grid.cell(*place) for place in places}, {place: grid.state(*place) for place in places}


def expected(job: JobRecord, written: Iterable[str]) -> list[tuple[str, int]]:
    """Return the cells that count in the grid's aggregates (rule R5)."""
    if job.plan is None:
        return [(tag, row) for tag in sorted(set(written)) for row in range(job.num_tasks)]
    return sorted((tag, row) for stages, rows in job.plan.shapes for tag in stages for row in rows)


def lowest(states: Iterable[State]) -> tuple[int, int, str]:
    """Return status, row and tag of the lowest state."""
    return min((state.status, state.task_index, state.tag) for state in states)


def tally(cells: Iterable[Cell]) -> Tally:
    """Return the tally of some cells, without the number of rows that have ended."""
    total = dict.fromkeys(Tally._fields, 0)
    for cell in cells:
        finished, negative = cell.status == Status.FINISHED, cell.status < 0
        running = not finished and cell.status > 0
        total["running"] += running
        total["finished"] += finished
        total["failed"] += negative and cell.blocked_by is None
        total["not_run"] += negative and cell.blocked_by is not None
        total["succeeded"] += finished and not cell.open
        total["ended"] += (finished or negative) and not cell.open
        total["failures"] += cell.failures
        total["failed_rows"] += cell.has_failed
        total["stalled"] += cell.stall.since != 0
        total["pending"] += cell.open or running
        total["progress"] += round(_share(cell) * FRACTION_UNIT) if running else 0
    return Tally(**total)


def check_grid(
    grid: Grid,
    places: list[tuple[str, int]],
    cells: Mapping[tuple[str, int], Cell],
    states: States,
) -> None:
    """Compare aggregates, tallies, summaries and lists with a recount of a job's cells.

    Args:
        places: the expected cells.
        cells, states: every cell, as returned by ``read_grid``.
    """
    _check_lowest(grid.lowest(), [states[place] for place in places])
    for row in {row for _, row in states}:
        _check_lowest(grid.lowest(row=row), [states[place] for place in places if place[1] == row])
    manager = grid.manager()
    job, columns = grid.store.column_summaries(grid.ref)
    assert job == grid.job
    assert {column.tag for column in columns} == {tag for tag, _ in places}
    for column in columns:
        counted = {place: cells[place] for place in places if place[0] == column.tag}
        assert column.tally == tally(counted.values())._replace(rows=_ended_rows(job, counted))
    for tag in {tag for tag, _ in states}:
        inside = [place for place in places if place[0] == tag] or [place for place in states if place[0] == tag]
        _check_lowest(grid.lowest(tag), [states[place] for place in inside])
        summary = summarize(*grid.store.column_summaries(grid.ref, tag, indexes=True), indexes=True)
        check_summary(summary, cells, states, inside, cancelled=job.cancelled is not None)
    for indexes in (True, False) if places else ():
        summary = manager.summary(indexes=indexes)
        check_summary(summary, cells, states, places, cancelled=job.cancelled is not None)
    _check_lists(grid, cells, states)


def _ended_rows(job: JobRecord, cells: Cells) -> int:
    """Return the number of cells that have ended in the last stage of their row."""
    last = {(stages[-1], row) for stages, rows in job.plan.shapes for row in rows} if job.plan else set()
    return sum(place in last and cell.final for place, cell in cells.items())


def _check_lowest(found: State, states: list[State]) -> None:
    if states:
        assert (found.status, found.task_index, found.tag) == lowest(states)
        assert found in states


def _check_lists(grid: Grid, cells: Mapping[tuple[str, int], Cell], states: States) -> None:
    def ordered(places: Iterable[tuple[str, int]]) -> list[State]:
        return [states[place] for place in sorted(places, key=lambda place: (cells[place].timestamp, *place))]

    written = [place for place, cell in cells.items() if cell.version]
    assert grid.states() == ordered(written)
    for tag in {tag for tag, _ in cells}:
        assert grid.states(tag) == ordered(place for place in written if place[0] == tag)
    for row in {row for _, row in cells}:
        assert grid.states(row=row) == ordered(place for place in written if place[1] == row)


def _share(cell: Cell) -> float:
    payload = json.loads(cell.payload) if cell.payload else {}
    return fraction_of(cell.status, payload.get("progress")) or 0.0


def check_summary(
    summary: Summary, cells: Cells, states: States, places: Iterable[tuple[str, int]], *, cancelled: bool
) -> None:
    """Compare a summary with a recount of the states that readers see."""
    places = list(places)
    found = [states[place] for place in places]
    not_run = [states[place] for place in places if cells[place].status < 0 and cells[place].blocked_by is not None]
    failed = [state for state in found if (state.failed or (cancelled and state.status == 0)) and state not in not_run]
    finished = [state for state in found if state.finished]
    missing = [state for state in found if state.status == 0 and not cancelled]
    running = [state for state in found if not state.terminal and state.status != 0]
    assert summary.expected == len(found)
    counts = (summary.not_started, summary.running, summary.finished, summary.failed, summary.not_run)
    assert counts == (len(missing), len(running), len(finished), len(failed), len(not_run))
    stalled = [place for place in places if cells[place].stall.since]
    assert [states[place].stalled for place in places] == [place in stalled for place in places]
    assert (sum(counts), summary.stalled) == (summary.expected, len(stalled))
    assert (summary.lowest.status, summary.lowest.task_index, summary.lowest.tag) == lowest(found)
    done = len(finished) + sum(state.fraction or 0.0 for state in running)
    assert abs(summary.fraction - done / len(found)) < 1e-6
    if summary.failed_indexes is None:
        assert summary.not_run_indexes is summary.stalled_indexes is None
    else:
        assert summary.stalled_indexes == {row for _, row in stalled}
        assert summary.not_run_indexes == {state.task_index for state in not_run}
        assert set(summary.failed_indexes) == {state.task_index for state in failed}
        assert set(summary.running_indexes or ()) == {state.task_index for state in running}
        assert set(summary.missing_indexes or ()) == {state.task_index for state in missing}
