"""The steps of this release. Once released, a step is never changed: what it should have done is the next one's."""

from __future__ import annotations

from dataclasses import replace

from celery_statemanager.manager import new_event_id
from celery_statemanager.migrations.registry import Steps
from celery_statemanager.records import Cell, JobRecord

STEPS = Steps()
"""They lead to ``models.SCHEMA_VERSION``, which new jobs and states have from the start."""


@STEPS.states(1)
def take_over(_: JobRecord, cell: Cell) -> Cell:
    """A state that another program wrote, such as the Go module: every state of ours has an event id.

    Its job was given an incarnation before, and with it the state is counted. No attempt was taken for it: 0 is right.
    """
    return cell if cell.event_id else replace(cell, event_id=new_event_id())
