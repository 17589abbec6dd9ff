"""What must hold after a round, whatever happened in it. Each finding is a sentence; none is good."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from celery_statemanager import State, Status
from celery_statemanager.integration.submission.job import Job
from celery_statemanager.records import CALLBACK_ROW, Cell, JobRecord
from celery_statemanager.stores import Store

ALLOWED = {
    "sturdy": {Status.FINISHED, Status.LOST},
    "fickle": {Status.FINISHED, Status.LOST},
    "fragile": {Status.FINISHED, Status.LOST},
    "doomed": {Status.FAILED, Status.LOST},
}
"""How a row may end, by its task."""

REQUEUED = {"sturdy", "fickle", "doomed"}
UNASKED = "None"
"""The attempt of a body that ran because the store was away and could not veto it: its words are refused later."""


def findings(store: Store, job: Job, tasks: list[str], notes: list[list[str]], max_lost: int) -> list[str]:
    """Look at a job that should have settled."""
    record = store.get_job(job.manager.ref.key)
    found = [] if record.settled else ["the job has not settled"]
    for row, task in enumerate(tasks):
        cell = store.get_cell(record.ref, "work", row) or Cell()
        found += [f"row {row} ({task}): {each}" for each in _of_row(cell, task, row, notes, max_lost)]
    return [*found, *_of_callbacks(store, record, tasks, notes)]


def _of_row(cell: Cell, task: str, row: int, notes: list[list[str]], max_lost: int) -> Iterator[str]:
    if not cell.final:
        yield f"is not final: status {cell.status}, attempt {cell.attempt}, open {cell.open}, {cell.message!r}"
        return
    if cell.status not in ALLOWED[task]:
        yield f"ended {cell.status}: {cell.message!r}"
    if cell.status == Status.LOST and task in REQUEUED and cell.losses < max_lost:
        yield f"was given up after {cell.losses} losses"
    if cell.status == Status.LOST and not cell.losses:
        yield "is LOST and never was"
    ended = [note[3] for note in notes if note[1] == "ended" and int(note[2]) == row]
    if cell.status == Status.FINISHED and not {*ended} & {str(cell.attempt), UNASKED}:
        yield f"is FINISHED at attempt {cell.attempt}, but its body ended in {ended}"


def of_stream(store: Store, job: Job, states: list[State]) -> Iterator[str]:
    """Look at what a subscriber saw: each cell's versions rise to its last one, and FINISHED is the end."""
    for row in range(job.num_tasks):
        mine = [state for state in states if state.task_index == row]
        versions = [state.version for state in mine]
        cell = store.get_cell(job.manager.ref, "work", row) or Cell()
        if versions != sorted({*versions}) or versions[-1:] != [cell.version][: cell.version]:
            yield f"row {row}: a subscriber saw the versions {versions} of {cell.version}"
        done = next((state for state in mine if state.finished), None)
        if done is not None and done.version != cell.version:
            yield f"row {row} was FINISHED at attempt {done.attempt} and went on to attempt {cell.attempt}"


def _of_callbacks(store: Store, record: JobRecord, tasks: list[str], notes: list[list[str]]) -> Iterator[str]:
    cells = [store.get_cell(record.ref, "work", row) or Cell() for row in range(len(tasks))]
    failed = any(cell.status < 0 for cell in cells)
    succeeded = all(cell.status == Status.FINISHED for cell in cells)
    ended = Counter(note[2] for note in notes if note[1] == "callback-ended")
    for latch, expected in (("success", succeeded), ("settled", True), ("failure", failed)):
        cell = store.get_cell(record.ref, latch, CALLBACK_ROW) or Cell()
        if expected and (cell.status != Status.FINISHED or not cell.final):
            yield f"callback {latch} ended {cell.status}, open {cell.open}: {cell.message!r}"
        if expected and not 1 <= ended[latch] <= 1 + cell.losses:
            yield f"callback {latch} ran to its end {ended[latch]} times, lost {cell.losses} times"
        if latch == "success" and ended[latch] and not expected:
            yield "callback success ran, though not all rows are FINISHED"
