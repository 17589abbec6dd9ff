"""The body of a job that was submitted as a chord: what its stages take, and its errbacks (rule R21)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery.app.task import Context
from celery.canvas import Signature
from kombu.exceptions import OperationalError
from kombu.utils.functional import maybe_list
from kombu.utils.json import loads

from celery_statemanager import barrier
from celery_statemanager.errors import ResultUnavailable, TaskFailed, WaitTimeout
from celery_statemanager.indexset import IndexSet
from celery_statemanager.integration.binding import Binding
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.integration.outbox.values import Unavailable, results_of
from celery_statemanager.integration.submission.results import (
    TooLarge,
    failure_of_row,
    finished_rows,
    read_results,
)
from celery_statemanager.limits import check_timeout
from celery_statemanager.manager import Manager
from celery_statemanager.records import CALLBACK_ROW, JobRecord, JobRef, split_latch, value_row
from celery_statemanager.retention import current

logger = logging.getLogger(__name__)

WITHOUT_BODY = "it was submitted without a body; submit it with submit(chord(header, body))"
"""The reason why a job has no result of a body."""


class CannotRun(Exception):
    """Raised if the message of a callback cannot be made. The text is the reason."""


def argument_of(tracker: Tracker, job: JobRecord, latch: str) -> Any:
    """Return what a stage of a body takes: the results of all rows in row order, or the value of the stage before.

    A row that has not finished, which the job tolerates, has None in the list.

    Args:
        latch: the name of the latch of the stage.

    Raises: CannotRun; JobNotFound, StoreError.
    """
    tag = job.callback_tag(latch)
    if split_latch(tag)[0] != job.body()[0]:
        value = _value_of(tracker, job, tag, "it is not stored")
        if isinstance(value, Unavailable):
            raise CannotRun(f"not published: it cannot take the value of the stage before: {value}")
        return value
    values: list[Any] = [None] * job.num_tasks
    most, setting = tracker.settings.max_body_bytes, "statemanager_max_body_bytes"
    try:
        for row, value in read_results(tracker.store, job, most=most):
            if isinstance(value, Unavailable):
                raise CannotRun(f"not published: it cannot take the result of task {row}: {value}")
            values[row] = value
    except TooLarge:
        raise CannotRun(f"not published: the results take more than {setting} = {most:,} bytes") from None
    return values


def _value_of(tracker: Tracker, job: JobRecord, tag: str, missing: str) -> Any:
    """Return what the stages of a body have passed on last; an ``Unavailable`` if that is not known.

    Args:
        tag: that of a stage, whose generation counts.
        missing: the reason if nothing is stored.
    """
    text = tracker.store.get_value(job.ref, value_row(tag, CALLBACK_ROW))
    return Unavailable(missing) if text is None else results_of([text])[0]


def failure_of_stage(tracker: Tracker, job: JobRecord, latch: str) -> TaskFailed | None:
    """Return the error for a stage of a body that has ended without success, else None. Raises: StoreError."""
    cell = tracker.store.get_cell(job.ref, job.callback_tag(latch), CALLBACK_ROW)
    if cell is None or not cell.final or cell.succeeded:
        return None
    return TaskFailed(job.job_id, CALLBACK_ROW, job.label(latch), cell.status, cell.message)


def call_errbacks(tracker: Tracker, job: JobRecord, latch: str) -> None:
    """Call the errbacks of the stage that failed or, if the header failed, of the whole body, as Celery calls them.

    Args:
        latch: the name of the latch of the errbacks.

    Raises: what the broker raises; JobNotFound, StoreError.
    """
    stage, task_id, error = _failure(tracker, job, split_latch(latch)[1])
    body: Any = Signature.from_dict(loads(job.latches[stage or job.body()[0]].callback or ""), app=tracker.app)
    whole = loads(job.latches[latch].callback or "")["errbacks"]
    errbacks = (maybe_list(body.options.get("link_error")) or []) if stage else whole
    request = Context({**body, "id": task_id, "errbacks": errbacks, "delivery_info": {}})
    try:
        # Celery has no public function that does only this: ``chord_error_from_stack`` also stores a result.
        backend: Any = tracker.app.backend
        backend._call_task_errbacks(request, error, None)
    except (OperationalError, OSError, SoftTimeLimitExceeded):
        raise  # they stay due
    except Exception:
        logger.exception("an errback of job %r failed", job.job_id, extra={"job_id": job.job_id})


def _failure(tracker: Tracker, job: JobRecord, generation: int) -> tuple[str | None, str, TaskFailed]:
    """Return the stage that failed, None if the header failed; the Celery task id of what failed; and the error."""
    stages = job.body(generation)
    for stage in stages:
        error = failure_of_stage(tracker, job, stage)
        if error is not None:
            return stage, Binding(job.ref, CALLBACK_ROW, job.callback_tag(stage)).celery_task_id, error
    for row in _failed_rows(tracker, job):
        error = failure_of_row(tracker.store, job, row)
        number = job.plan.stages(row).index(error.tag) if job.plan else 0
        cell = tracker.store.get_cell(job.ref, error.tag, row)
        if cell is not None and cell.generation == (generation or job.generation.number):
            binding = Binding(job.ref, row, error.tag, number, generation=cell.generation)
            return None, binding.celery_task_id, error
    error = TaskFailed(job.job_id, CALLBACK_ROW, "body", 0, "not run: a row failed, and was rerun meanwhile")
    return None, Binding(job.ref, CALLBACK_ROW, job.callback_tag("success")).celery_task_id, error


def _failed_rows(tracker: Tracker, job: JobRecord) -> Iterator[int]:
    _, columns = tracker.store.column_summaries(job.ref, indexes=True)
    yield from IndexSet().union(*(each.failed or IndexSet() for each in columns))


def wait_for_result(tracker: Tracker, record: JobRecord, timeout: float | None) -> Any:
    """Wait until the body of the current generation has ended, and return what its last stage has returned.

    Raises: as ``Job.body_result``.
    """
    seconds = check_timeout(timeout)
    job = current(tracker.store, record.ref)
    if not job.body():
        raise ResultUnavailable(job.job_id, None, WITHOUT_BODY)
    generation = job.generation.number
    failure = barrier.wait_until(tracker.store, job.ref, lambda: _outcome(tracker, job.ref, generation), seconds)
    if failure is None:
        raise WaitTimeout(job.job_id, seconds or 0.0, Manager(tracker.store, job).summary())
    if isinstance(failure, TaskFailed):
        raise failure
    tag, missing = job.callback_tag(job.body()[-1]), "its body became FINISHED without the end of its task"
    value = _value_of(tracker, job, tag, missing)
    if isinstance(value, Unavailable):
        raise ResultUnavailable(job.job_id, None, f"its body has returned it, but {value}")
    return value


_SUCCEEDED = "succeeded"


def _outcome(tracker: Tracker, ref: JobRef, generation: int) -> TaskFailed | str | None:
    """Return the failure of the body in a generation, or ``_SUCCEEDED``; None if it has not ended."""
    job = current(tracker.store, ref)
    stages = job.body(generation)
    if not stages or job.latches[stages[0]].decided_at is None:
        if job.settled or job.generation.number != generation:
            _, finished = finished_rows(tracker.store, job)
            failed = IndexSet(range(job.num_tasks)).without(finished)
            return failure_of_row(tracker.store, job, failed.first) if failed else None
        return None
    for stage in stages:
        failure = failure_of_stage(tracker, job, stage)
        if failure is not None:
            return failure
        cell = tracker.store.get_cell(ref, job.callback_tag(stage), CALLBACK_ROW)
        if cell is None or not cell.final:
            return None
    return _SUCCEEDED
