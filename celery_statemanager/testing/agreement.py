"""The comparison of everything that can be read of a job with its model."""

from __future__ import annotations

from celery_statemanager.stores.capabilities import FullStore
from celery_statemanager.testing.drawn import TAGS
from celery_statemanager.testing.kit import Grid
from celery_statemanager.testing.model import JobModel, short_repr
from celery_statemanager.testing.naive import check_grid, read_grid


def check_agreement(store: FullStore, model: JobModel) -> None:
    """Compare everything that can be read of a job with its model. Raises: AssertionError."""
    grid = Grid(store, model.ref)
    job = grid.job
    assert (job.cancelled is not None, job.tombstoned_at is not None) == (model.cancelled, model.tombstoned)
    assert grid.fallen == model.fallen
    cells, states = read_grid(grid, TAGS)
    for place, cell in cells.items():
        assert short_repr(cell) == short_repr(model.cell(place))
        assert (states[place].status, states[place].message) == model.reads(place)
    check_grid(grid, model.expected, cells, states)
    owned = {(tag, row) for (tag, row), cell in model.cells.items() if cell.open and cell.owner}
    found = [each for each in store.list_open_attempts() if each.ref == grid.ref]
    assert {(each.tag, each.task_index) for each in found} == owned
    assert len(found) == len(owned)
