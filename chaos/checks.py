"""The guarantees that must hold after every round. Each violation is a sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from celery_statemanager import ResultUnavailable, State, Status
from celery_statemanager.integration.submission.job import Job
from celery_statemanager.records import CALLBACK_ROW, Cell, JobRecord
from celery_statemanager.stores import Store

ALLOWED = {
    "requeued": {Status.FINISHED, Status.LOST},
    "retried": {Status.FINISHED, Status.LOST},
    "marked": {Status.FINISHED, Status.LOST},
    "failing": {Status.FAILED, Status.LOST},
    "chained": {Status.FINISHED, Status.LOST},
}
"""The final statuses that each task may have."""

LAST_STAGE = {"chained": "second"}
"""The tag of the last stage of the tasks that have several."""

REQUEUED = {"requeued", "retried", "failing", "chained"}
NO_ATTEMPT = "None"
"""Noted by a task that ran without an attempt, because the store was unavailable. Its duplicates cannot be vetoed."""


def job_violations(store: Store, job: Job, tasks: list[str], notes: list[list[str]], max_lost: int) -> list[str]:
    """Return the violated guarantees of a job that should have settled."""
    record = store.get_job(job.manager.ref.key)
    violations = [] if record.settled else ["the job has not settled"]
    for row, task in enumerate(tasks):
        cell = store.get_cell(record.ref, "work", row) or Cell()
        violations += [f"row {row} ({task}): {each}" for each in _row_violations(cell, task, row, notes, max_lost)]
        if task == "chained":
            last = store.get_cell(record.ref, "second", row) or Cell()
            violations += [f"row {row} ({task}): {each}" for each in _stage_violations(cell, last, row, notes)]
    return [*violations, *_callback_violations(store, record, tasks, notes)]


def _row_violations(cell: Cell, task: str, row: int, notes: list[list[str]], max_lost: int) -> Iterator[str]:
    if not cell.final:
        yield f"is not final: status {cell.status}, attempt {cell.attempt}, open {cell.open}, {cell.message!r}"
        return
    if cell.status not in ALLOWED[task]:
        yield f"ended {cell.status}: {cell.message!r}"
    if cell.status == Status.LOST and task in REQUEUED and cell.losses < max_lost:
        yield f"was marked LOST after {cell.losses} losses, before the limit"
    if cell.status == Status.LOST and not cell.losses:
        yield "is LOST without a loss"
    ended = [note[3] for note in notes if note[1] == "ended" and int(note[2]) == row]
    if cell.status == Status.FINISHED and not {*ended} & {str(cell.attempt), NO_ATTEMPT}:
        yield f"is FINISHED at attempt {cell.attempt}, but its task ended in attempts {ended}"


def _stage_violations(first: Cell, last: Cell, row: int, notes: list[list[str]]) -> Iterator[str]:
    """Yield what is wrong with the second stage of a chain."""
    if not last.final:
        yield f"its second stage is not final: status {last.status}, attempt {last.attempt}, {last.message!r}"
    if first.status < 0 and last.blocked_by is None:
        yield f"its second stage ended {last.status}, although the first one failed"
    runs = [note for note in notes if note[1] == "second" and int(note[2]) == row]
    if last.status == Status.FINISHED and not runs:
        yield "its second stage is FINISHED and never ran"
    if any(note[4] != "value" for note in runs):
        yield f"its second stage took another value: {runs}"


def stream_violations(store: Store, job: Job, states: list[State]) -> Iterator[str]:
    """Yield the cells whose versions did not rise to the last one, or that changed after FINISHED.

    The end of an attempt that was marked LOST may be written after the job has settled, and with it the subscription.
    """
    for row in range(job.num_tasks):
        received = [state for state in states if (state.tag, state.task_index) == ("work", row)]
        versions = [state.version for state in received]
        cell = store.get_cell(job.manager.ref, "work", row) or Cell()
        late = bool(received) and received[-1].status == Status.LOST and received[-1].attempt == cell.attempt
        last = cell.version - 1 if late and versions[-1] == cell.version - 1 else cell.version
        if versions != sorted({*versions}) or versions[-1:] != [last][: cell.version]:
            yield f"row {row}: a subscriber received the versions {versions} of {cell.version}"
        done = next((state for state in received if state.finished), None)
        if done is not None and done.version != cell.version:
            yield f"row {row} was FINISHED at attempt {done.attempt} and changed again at attempt {cell.attempt}"


def result_violations(store: Store, job: Job, tasks: list[str]) -> Iterator[str]:
    """Yield the finished rows that have another result than their task returned, and the other rows that have one."""
    last = [store.get_cell(job.manager.ref, LAST_STAGE.get(task, "work"), row) for row, task in enumerate(tasks)]
    expected = {row: "value" for row, cell in enumerate(last) if cell is not None and cell.succeeded}
    try:
        found = dict(job.results())
    except ResultUnavailable as error:
        yield str(error)
        return
    if found != expected:
        yield f"the rows have the results {found}, not {expected}"


def _callback_violations(store: Store, record: JobRecord, tasks: list[str], notes: list[list[str]]) -> Iterator[str]:
    cells = [store.get_cell(record.ref, "work", row) or Cell() for row in range(len(tasks))]
    later = [store.get_cell(record.ref, "second", row) for row, task in enumerate(tasks) if task == "chained"]
    cells += [cell or Cell() for cell in later]
    failed = any(cell.status < 0 for cell in cells)
    succeeded = all(cell.status == Status.FINISHED for cell in cells)
    runs = [note[2:4] for note in notes if note[1] == "callback-ended"]
    ended = Counter(tag for tag, attempt in runs if attempt != NO_ATTEMPT)
    unrecorded = Counter(tag for tag, attempt in runs if attempt == NO_ATTEMPT)
    for latch, expected in (("success", succeeded), ("settled", True), ("failure", failed)):
        tag = record.callback_tag(latch)
        cell = store.get_cell(record.ref, tag, CALLBACK_ROW) or Cell()
        if expected and (cell.status != Status.FINISHED or not cell.final):
            yield f"callback {latch} ended {cell.status}, open {cell.open}: {cell.message!r}"
        if expected and not (ended[tag] + unrecorded[tag] and ended[tag] <= 1 + cell.losses):
            yield f"callback {latch} ran to its end {ended[tag]} times, lost {cell.losses} times"
        if latch == "success" and ended[tag] and not expected:
            yield "callback success ran, though not all rows are FINISHED"
