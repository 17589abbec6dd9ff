"""The results of a job: which rows have one, and reading them from the store in pages (rule R21)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from itertools import chain, islice
from typing import Any

from celery_statemanager.aggregate import missing_state
from celery_statemanager.errors import ResultUnavailable, TaskFailed
from celery_statemanager.indexset import IndexSet
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.integration.outbox.member import checked_rows
from celery_statemanager.integration.outbox.values import Unavailable, results_of
from celery_statemanager.models import Scope, State
from celery_statemanager.records import EVERY_ROW, Column, JobRecord
from celery_statemanager.stores.capabilities import FullStore

WITHOUT_RESULTS = "it was submitted without results; submit it with results=True, or set keep_result = True on a task"
"""The reason why a job has no results."""

_FIRST_BATCH, _LARGEST_BATCH, _BATCH_BYTES = 8, 512, 256 * 1024
"""Results that are decoded together: their number in the first batch and in the largest one, and their usual size."""


def check_keeps_results(record: JobRecord) -> None:
    """Check that a job keeps results. Raises: ResultUnavailable."""
    if record.results is None:
        raise ResultUnavailable(record.job_id, None, WITHOUT_RESULTS)


def iterate_results(tracker: Tracker, record: JobRecord, rows: str | Iterable[int] | None) -> Iterator[tuple[int, Any]]:
    """Return the results of finished rows; see ``Job.results``."""
    wanted = None if rows is None else checked_rows(rows, record.num_tasks)

    def iterate() -> Iterator[tuple[int, Any]]:
        for batch in _batches(tracker.store, record, wanted):
            has_all = Unavailable not in {type(result) for _, result in batch}
            yield from batch if has_all else (_checked(record, *each) for each in batch)

    return iterate()


def list_results(tracker: Tracker, record: JobRecord) -> list[Any]:
    """Return the results of all rows. Raises: TaskFailed, ResultUnavailable; JobNotFound; StoreError."""
    job, finished = finished_rows(tracker.store, record)
    if len(finished) < job.num_tasks:
        raise failure_of_row(tracker.store, job, IndexSet(range(job.num_tasks)).without(finished).first)
    found = dict(chain.from_iterable(_read(tracker.store, record, finished)))
    missing = "its task does not keep it; submit the job with results=True"
    return [_checked(record, row, found.pop(row, Unavailable(missing)))[1] for row in finished]


def read_results(
    store: FullStore, record: JobRecord, rows: IndexSet | None = None, *, most: float = math.inf
) -> Iterator[tuple[int, Any]]:
    """Yield the result of each finished row in row order: a value, or an ``Unavailable`` with the reason.

    Args:
        rows: the wanted rows; None for all.
        most: the maximum size of a list of these results, in bytes of JSON.

    Raises: TooLarge, JobNotFound, StoreError.
    """
    return chain.from_iterable(_batches(store, record, rows, most))


class TooLarge(Exception):
    """Raised while results are read that are larger together than the reader accepts."""


def finished_rows(store: FullStore, record: JobRecord) -> tuple[JobRecord, IndexSet]:
    """Return the current job, and the rows whose stages have all finished. Raises: JobNotFound, StoreError."""
    every = IndexSet(range(record.num_tasks))
    job, columns = store.column_summaries(record.ref)
    if all(each.tally.succeeded >= each.expected for each in columns):  # then no store has to look for the others
        return job, every
    job, columns = store.column_summaries(record.ref, indexes=True)
    return job, every.without(reduce(IndexSet.union, map(_unfinished, columns), IndexSet()))


def _unfinished(column: Column) -> IndexSet:
    sets = (column.failed, column.running, column.missing, column.not_run)
    return IndexSet().union(*(each for each in sets if each is not None))


def _batches(
    store: FullStore, record: JobRecord, rows: IndexSet | None, most: float = math.inf
) -> Iterator[list[tuple[int, Any]]]:
    _, finished = finished_rows(store, record)
    yield from _read(store, record, finished if rows is None else finished.within(rows), most)


def _read(
    store: FullStore, record: JobRecord, rows: IndexSet, most: float = math.inf
) -> Iterator[list[tuple[int, Any]]]:
    """Yield the results of finished rows in batches, because a step for each row would take longer than decoding it.

    If every row keeps its result, a row without one is yielded too. Raises: TooLarge – a list of them takes more bytes.
    """
    values, expected, size, read = store.list_values(record.ref, rows), iter(rows), _FIRST_BATCH, 1
    while batch := list(islice(values, size)):
        found, texts = zip(*batch)
        read += sum(len(text) if text.isascii() else len(text.encode()) for text in texts)
        if read > most:
            raise TooLarge
        results = list(zip(found, results_of(texts)))
        due = list(islice(expected, len(found)))
        while due[-1] != found[-1]:
            due.append(next(expected))
        yield results if len(due) == len(found) else list(_with_missing(store, record, due, dict(results)))
        average = sum(map(len, texts)) // len(texts)
        size = max(1, min(2 * size, _LARGEST_BATCH, _BATCH_BYTES // average))
    yield from ([each] for row in expected for each in _missing(store, record, row))


def _with_missing(
    store: FullStore, record: JobRecord, rows: Iterable[int], found: Mapping[int, Any]
) -> Iterator[tuple[int, Any]]:
    for row in rows:
        if row in found:
            yield row, found[row]
        else:
            yield from _missing(store, record, row)


def _missing(store: FullStore, record: JobRecord, row: int) -> Iterator[tuple[int, Any]]:
    """Yield the reason for a missing result, unless the row keeps none or its task still runs."""
    if record.results != EVERY_ROW or record.plan is None:
        return
    cells = [store.get_cell(record.ref, tag, row) for tag in record.plan.stages(row)]
    if all(cell is not None and cell.succeeded for cell in cells):
        yield row, Unavailable("it became FINISHED without the end of its task")


def _checked(record: JobRecord, row: int, result: Any) -> tuple[int, Any]:
    if isinstance(result, Unavailable):
        raise ResultUnavailable(record.job_id, row, str(result))
    return row, result


def failure_of_row(store: FullStore, job: JobRecord, row: int) -> TaskFailed:
    """Return the error for a row that has not finished."""
    found = {state.tag: state for state in store.list_states(job.ref, Scope(task_index=row))}
    stages = job.plan.stages(row) if job.plan else sorted(found)
    states: list[State] = [found.get(tag) or missing_state(job, tag, row) for tag in stages]
    state = next((each for each in states if not each.finished), states[-1])
    return TaskFailed(job.job_id, row, state.tag, int(state.status), state.message)
