"""The rules said once more, as plainly and as slowly as possible: what stores are measured against."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from celery_statemanager.models import State, Status, Summary, fraction_of
from celery_statemanager.records import FRACTION_UNIT, Cell, JobRecord, Tally
from celery_statemanager.testing.kit import Grid

Cells = Mapping[tuple[str, int], Cell]
States = Mapping[tuple[str, int], State]


def read_grid(grid: Grid, tags: Iterable[str]) -> tuple[dict[tuple[str, int], Cell], dict[tuple[str, int], State]]:
    """Read every cell of a job one by one, as it is kept and as readers see it."""
    places = [(tag, row) for tag in tags for row in range(grid.job.num_tasks)]
    return {place: grid.cell(*place) for place in places}, {place: grid.state(*place) for place in places}


def expected(job: JobRecord, seen: Iterable[str]) -> list[tuple[str, int]]:
    """Give the cells that count in the grid's aggregates (rule R5)."""
    if job.plan is None:
        return [(tag, row) for tag in sorted(set(seen)) for row in range(job.num_tasks)]
    return sorted((tag, row) for stages, rows in job.plan.shapes for tag in stages for row in rows)


def lowest(states: Iterable[State]) -> tuple[int, int, str]:
    """Give status, row and tag of the lowest state."""
    return min((state.status, state.task_index, state.tag) for state in states)


def tally(cells: Iterable[Cell]) -> Tally:
    """Count cells by class."""
    total = dict.fromkeys(Tally._fields, 0)
    for cell in cells:
        finished, negative = cell.status == Status.FINISHED, cell.status < 0
        running = not finished and cell.status > 0
        total["running"] += running
        total["finished"] += finished
        total["failed"] += negative
        total["succeeded"] += finished and not cell.open
        total["ended"] += (finished or negative) and not cell.open
        total["alarms"] += negative and not cell.open and cell.status != Status.CANCELLED
        total["pending"] += cell.open or running
        total["progress"] += round(_share(cell) * FRACTION_UNIT) if running else 0
    return Tally(**total)


def _share(cell: Cell) -> float:
    payload = json.loads(cell.payload) if cell.payload else {}
    return fraction_of(cell.status, payload.get("progress")) or 0.0


def check_summary(summary: Summary, states: States, rows_tags: Iterable[tuple[str, int]]) -> None:
    """Compare a summary with a recount of what readers see."""
    found = [states[place] for place in rows_tags]
    failed = [state for state in found if state.failed]
    finished = [state for state in found if state.finished]
    missing = [state for state in found if state.status == 0]
    running = [state for state in found if not state.terminal and state.status != 0]
    assert summary.expected == len(found)
    counts = (summary.not_started, summary.running, summary.finished, summary.failed)
    assert counts == (len(missing), len(running), len(finished), len(failed))
    assert (summary.lowest.status, summary.lowest.task_index, summary.lowest.tag) == lowest(found)
    done = len(finished) + sum(state.fraction or 0.0 for state in running)
    assert abs(summary.fraction - done / len(found)) < 1e-6
    if summary.failed_indexes is not None:
        assert set(summary.failed_indexes) == {state.task_index for state in failed}
        assert set(summary.running_indexes or ()) == {state.task_index for state in running}
        assert set(summary.missing_indexes or ()) == {state.task_index for state in missing}
