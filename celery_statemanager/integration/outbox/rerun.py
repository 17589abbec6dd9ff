"""Rerun rows of a job: reset each from the right stage, and publish them (rule R20)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from celery_statemanager.generations import RerunReport, begin_generation, reset_rows
from celery_statemanager.indexset import IndexSet
from celery_statemanager.integration.binding import IMMUTABLE
from celery_statemanager.integration.callbacks import publish_decided
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.integration.outbox.making import binding_in
from celery_statemanager.integration.outbox.member import checked_rows, why_not_stored
from celery_statemanager.integration.outbox.publisher import publish_due
from celery_statemanager.integration.outbox.values import stage_value
from celery_statemanager.records import JobRecord
from celery_statemanager.retention import current

FAILED_ROWS = "failed"
"""The value of ``rows`` that requests all rows that have ended without FINISHED."""


def rerun(tracker: Tracker, record: JobRecord, rows: str | Iterable[int]) -> RerunReport:
    """Rerun rows of a job; see ``Job.rerun``."""
    check_rerunnable(record)
    complete = partial(complete_rerun, tracker)
    report = begin_generation(tracker.store, record.ref, requested_rows(record, rows), complete)
    if report.rows:
        complete(current(tracker.store, record.ref))
    return report


def check_rerunnable(record: JobRecord) -> None:
    """Check that the messages of a job are stored. Raises: ValueError."""
    if record.flow is None:
        raise ValueError(
            f"job {record.job_id!r} cannot be rerun, because its messages are not stored: {why_not_stored(record)}"
        )


def requested_rows(record: JobRecord, rows: str | Iterable[int]) -> IndexSet | None:
    """Return the rows of a job that a caller requests; None for the failed ones. Raises: TypeError, ValueError."""
    if isinstance(rows, bytes) or not isinstance(rows, Iterable):
        raise TypeError(f'rows must be "failed" or rows such as "3,17-20" or [3, 17], not {rows!r}')
    return None if isinstance(rows, str) and rows == FAILED_ROWS else checked_rows(rows, record.num_tasks)


def complete_rerun(tracker: Tracker, job: JobRecord) -> None:
    """Reset the rows that a new generation has chosen, and publish them. Raises: JobNotFound, StoreError."""
    publish = partial(publish_due, tracker, job.ref)
    decided = reset_rows(tracker.store, job, partial(_first_stage, tracker, job), publish)
    publish_decided(tracker, job.ref, decided)
    publish()


def _first_stage(tracker: Tracker, job: JobRecord, row: int, failed: str) -> str:
    """Return the stage from which a row runs again: the failed one, or the first if the value it takes is not kept."""
    stages = job.plan.stages(row) if job.plan else (failed,)
    if len(stages) == 1:
        return failed
    bindings = [binding_in(each) for each in tracker.blocks.messages(tracker.store, job.ref, row)]
    tags = [each.tag for each in bindings]
    earlier = stages[: stages.index(failed) + 1]  # the job may plan tags that no task of the row has
    tag = next((each for each in reversed(earlier) if each in tags), tags[0])
    number = tags.index(tag)
    takes_value = number > 0 and bindings[number - 1].next not in {None, IMMUTABLE}
    return tags[0] if takes_value and stage_value(tracker.store, job.ref, row) is None else tag
