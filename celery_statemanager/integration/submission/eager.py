"""Running the members of a job in the submitting process, as Celery does in eager mode."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from celery import Celery
from celery.canvas import chain
from celery.exceptions import NotRegistered
from kombu.exceptions import EncodeError

from celery_statemanager import completion
from celery_statemanager.errors import SubmitFailed
from celery_statemanager.integration.binding import Binding
from celery_statemanager.integration.callbacks import publish_decided
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.integration.outbox.making import bindings_of
from celery_statemanager.integration.submission.job import Job
from celery_statemanager.integration.submission.members import Stages, tags_of
from celery_statemanager.models import Scope
from celery_statemanager.records import EVERY_ROW, LATCHES, JobRecord, Policy
from celery_statemanager.retention import current
from celery_statemanager.texts import describe

logger = logging.getLogger(__name__)


def run_members(job: Job, tracker: Tracker, record: JobRecord, found: Sequence[Stages]) -> None:
    """Run each member, and the callbacks, until the policy of the job has cancelled it.

    Raises: SubmitFailed – a member cannot run at all; the job is cancelled.
    """
    has_policy = record.policy != Policy()
    for row, stages in enumerate(found):
        if has_policy and _is_cancelled(tracker, record):
            return
        try:
            _run(tracker, record, row, stages)
        except BaseException as error:
            _cancel(tracker, record, row)
            if not isinstance(error, Exception):
                raise
            failed = SubmitFailed(record.job_id, row, describe(error), published=row)
            failed.job = job
            raise failed from error


def bind(app: Celery, record: JobRecord, row: int, stages: Stages) -> list[Binding]:
    """Bind the stages of a member to their cells, in place, and return the bindings."""
    bindings = bindings_of(app, record.ref, row, stages, tags_of(app, stages), results=record.results == EVERY_ROW)
    for binding, stage in zip(bindings, stages, strict=True):
        binding.bind(stage)
    return bindings


def _is_cancelled(tracker: Tracker, record: JobRecord) -> bool:
    """Return whether a policy has cancelled the job; cancel it if its deadline has passed."""
    publish_decided(tracker, record.ref, completion.expire(tracker.store, record.ref))
    return current(tracker.store, record.ref).cancelled is not None


def _run(tracker: Tracker, record: JobRecord, row: int, stages: Stages) -> None:
    """Run a member; a failure of a stage is a state of the job and does not end the submission."""
    try:
        (chain(*stages) if len(stages) > 1 else stages[0]).apply_async()
    except Exception as error:
        if isinstance(error, (EncodeError, NotRegistered)) and not _has_states(tracker, record, row):
            raise
        log_extra = {"job_id": record.job_id, "task_index": row}
        logger.info("a task failed in eager mode", exc_info=True, extra=log_extra)


def _has_states(tracker: Tracker, record: JobRecord, row: int) -> bool:
    return any(True for _ in tracker.store.list_states(record.ref, Scope(task_index=row)))


def _cancel(tracker: Tracker, record: JobRecord, row: int) -> None:
    try:
        completion.cancel(tracker.store, record.ref, f"submit failed after {row} of {record.num_tasks}")
        publish_decided(tracker, record.ref, LATCHES)
    except Exception:
        text = "cannot cancel job %r, whose submit failed"
        logger.exception(text, record.job_id, extra={"job_id": record.job_id})
