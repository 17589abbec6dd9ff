"""Revoke the messages of a cancelled job. This is optional: begins of a cancelled job are vetoed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice

from celery_statemanager.integration.binding import Binding
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.records import JobRecord

logger = logging.getLogger(__name__)

_MAX_REVOKES = 10_000
_REVOKES_AT_ONCE = 1_000


def revoke_waiting(tracker: Tracker, record: JobRecord) -> None:
    """Revoke the messages that workers receive next.

    Their number is limited, because a worker remembers 50,000 revokes of all senders. The revokes of a long job would
    displace those of other senders, and finally its own.
    """
    try:
        ids = islice(_waiting_ids(tracker, record), _MAX_REVOKES)
        while batch := list(islice(ids, _REVOKES_AT_ONCE)):
            tracker.app.control.revoke(batch)
    except Exception as error:  # noqa: BLE001 - any failure of the broker; the job is cancelled all the same
        logger.info(
            "cannot revoke the messages of job %r: %s; workers drop them when they receive them",
            record.job_id,
            error,
            extra={"job_id": record.job_id},
        )


def _waiting_ids(tracker: Tracker, record: JobRecord) -> Iterator[str]:
    """Yield Celery task ids from the first row with a stage that has not begun, if rows begin in order."""
    ref, plan = record.ref, record.plan
    if plan is None:
        return
    job, columns = tracker.store.column_summaries(ref)
    if job.cancelled is None:  # it was rerun meanwhile
        return
    begun, generation = {each.tag: each.tally.started for each in columns}, job.generation.number
    to_begin = (rows.after(begun[tag]) for tag, rows in plan.columns.items() if begun[tag] < len(rows))
    for row in range(min(to_begin, default=record.num_tasks), record.num_tasks):
        for stage, tag in enumerate(plan.stages(row)):
            yield Binding(ref, row, tag, stage, generation=generation).celery_task_id
