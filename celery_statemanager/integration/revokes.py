"""Revoking the messages of a cancelled job (rule R17)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice

from celery_statemanager.integration.binding import Binding
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.records import JobRef

logger = logging.getLogger(__name__)

_MAX_REVOKES = 10_000
_REVOKES_AT_ONCE = 1_000


def revoke(tracker: Tracker, ref: JobRef) -> None:
    """Revoke the messages that workers receive next. This is optional: begins of a cancelled job are vetoed.

    Their number is limited, because a worker remembers 50,000 revokes of all senders. The revokes of a long job
    would displace those of other senders, and finally its own.
    """
    if tracker.app.conf.task_always_eager:  # there are no messages, and often no broker
        return
    try:
        ids = islice(_waiting_ids(tracker, ref), _MAX_REVOKES)
        while batch := list(islice(ids, _REVOKES_AT_ONCE)):
            tracker.app.control.revoke(batch)
    except Exception as error:  # noqa: BLE001 - any failure of the broker; the job is cancelled all the same
        logger.info(
            "cannot revoke the messages of job %r: %s; workers drop them when they receive them",
            ref.key.job_id,
            error,
            extra={"job_id": ref.key.job_id},
        )


def _waiting_ids(tracker: Tracker, ref: JobRef) -> Iterator[str]:
    """Yield Celery task ids from the first row with a stage that has not begun, if rows begin in order."""
    job, columns = tracker.store.column_summaries(ref)
    plan = job.plan
    if plan is None or job.cancelled is None:  # it was rerun meanwhile
        return
    begun, generation = {each.tag: each.tally.started for each in columns}, job.generation.number
    to_begin = (rows.after(begun[tag]) for tag, rows in plan.columns.items() if begun[tag] < len(rows))
    for row in range(min(to_begin, default=job.num_tasks), job.num_tasks):
        for stage, tag in enumerate(plan.stages(row)):
            yield Binding(ref, row, tag, stage, generation=generation).celery_task_id
