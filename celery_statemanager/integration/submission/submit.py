"""Creating a job: its messages are made and stored, the job is created, and they are published (rules R12, R19)."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from typing import Any
from uuid import UUID

from celery.canvas import Signature

from celery_statemanager.errors import JobExists, JobNotFound, StoreError, StoreUnavailable, SubmitFailed
from celery_statemanager.integration.binding import RESULT
from celery_statemanager.integration.callbacks import publish_decided
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.integration.outbox.blocks import BlockWriter
from celery_statemanager.integration.outbox.capture import Capture
from celery_statemanager.integration.outbox.making import MessageMaker
from celery_statemanager.integration.outbox.publisher import publish_due
from celery_statemanager.integration.stalling import StallOptions
from celery_statemanager.integration.submission import chords, members
from celery_statemanager.integration.submission.delays import Delays
from celery_statemanager.integration.submission.eager import bind, run_members
from celery_statemanager.integration.submission.job import Job
from celery_statemanager.integration.submission.latches import latch_of
from celery_statemanager.integration.submission.members import Stages, as_signature
from celery_statemanager.limits import check_max_in_flight, encode_metadata, short_repr
from celery_statemanager.plan import Plan, PlanSpec
from celery_statemanager.policies import PolicySpec
from celery_statemanager.records import EVERY_ROW, SOME_ROWS, Flow, JobRecord, JobRef, job_key, new_incarnation
from celery_statemanager.texts import describe

_WITHOUT_ROWS = ("success", "settled")
"""The latches that are decided when a job without rows is created."""


def submit(
    tracker: Tracker,
    tasks: Iterable[Any],
    *,
    job_id: str | UUID | None,
    run_token: str | UUID | None,
    tags: PlanSpec | None,
    callbacks: Mapping[str, Signature[Any] | None],
    max_in_flight: int | None,
    policy: PolicySpec,
    metadata: Mapping[str, Any] | None,
    results: bool,
    stall: StallOptions | None,
) -> Job:
    """Create a job and publish its messages; see ``StateManager.submit``.

    Args:
        callbacks: the callback of each latch, by the latch's name.
        stall: the checked options about stalled tasks.
    """
    app = tracker.app
    if not isinstance(results, bool):
        raise TypeError(f"results must be True or False, not {short_repr(results)}")
    latches = {name: latch_of(app, name, as_signature(app, each)) for name, each in callbacks.items()}
    tasks, is_chord = as_signature(app, tasks), False
    if chords.is_chord(tasks):
        chord = chords.read_chord(app, tasks, callbacks["success"])
        tasks, is_chord, latches = chord.header, True, {**latches, **chord.latches}
        results = results or chord.takes_results
    key = job_key(f"job-{secrets.token_hex(5)}" if job_id is None else job_id, run_token)
    ref = JobRef(key, new_incarnation())
    flow, encoded = Flow(check_max_in_flight(max_in_flight)), encode_metadata(metadata)
    found = members.read(app, tasks, may_be_empty=is_chord)
    _check_free(tracker, ref)
    kept = EVERY_ROW if results else None
    record = JobRecord(*key, ref.incarnation, 0, metadata=encoded, results=kept, latches=latches)
    first = next(found, None) if is_chord else None
    if is_chord and first is None:
        return _without_rows(tracker, record)
    found = found if first is None else chain([first], found)
    if app.conf.task_always_eager:
        return _run_inline(tracker, record, [members.copied(app, stages) for stages in found], tags, policy)
    record = _accepted(tracker, record, flow, found, tags, policy, stall)
    publish_due(tracker, ref)
    return Job(tracker, record)


def _check_free(tracker: Tracker, ref: JobRef) -> None:
    """Check that no job has the key, before anything of the new one is stored. Raises: JobExists, StoreError."""
    try:
        tracker.store.get_job(ref.key)
    except JobNotFound:
        return
    raise JobExists(*ref.key)


def _accepted(
    tracker: Tracker,
    record: JobRecord,
    flow: Flow,
    found: Iterable[Stages],
    tags: PlanSpec | None,
    policy: PolicySpec,
    stall: StallOptions | None,
) -> JobRecord:
    """Store the messages of a job, then create it. On any error, nothing of it remains."""
    plan, delays, blocks = members.PlanBuilder(), Delays(), BlockWriter(tracker.store, record.ref)
    try:
        with Capture(tracker.app) as capture:
            results = record.results == EVERY_ROW
            maker = MessageMaker(tracker.app, record.ref, capture, results=results, stall=stall)
            for row, stages in enumerate(found):
                row_tags = members.tags_of(tracker.app, stages)
                plan.add(row_tags, row)
                delays.add(row, stages[0].options)
                try:
                    blocks.add(maker.make(row, stages, row_tags))
                except StoreError:
                    raise
                except Exception as error:
                    raise SubmitFailed(record.job_id, row, describe(error)) from error
        blocks.flush()
        record = replace(_planned(tracker, record, plan, tags, policy), results=maker.kept)
        return _created(tracker, replace(record, flow=replace(flow, delayed=delays.rows, delayed_until=delays.until)))
    except BaseException:
        with suppress(StoreError):  # then a sweep drops it
            tracker.store.drop_draft(record.ref)
        raise


def _created(tracker: Tracker, record: JobRecord) -> JobRecord:
    """Create a job. If the store does not answer, look whether it has created it."""
    try:
        return tracker.store.create_job(record)
    except StoreUnavailable:
        with suppress(JobNotFound):
            found = tracker.store.get_job(record.key)
            if found.incarnation == record.incarnation:
                return found
        raise


def _without_rows(tracker: Tracker, record: JobRecord) -> Job:
    """Create the job of a chord with an empty header, which has succeeded, and publish its body."""
    now = tracker.store.now()
    decided = {name: replace(record.latches[name], decided_at=now) for name in _WITHOUT_ROWS}
    record = _created(tracker, replace(record, plan=Plan(()), latches={**record.latches, **decided}))
    publish_decided(tracker, record.ref, _WITHOUT_ROWS)
    return Job(tracker, record)


def _planned(
    tracker: Tracker, record: JobRecord, builder: members.PlanBuilder, tags: PlanSpec | None, policy: PolicySpec
) -> JobRecord:
    """Return the record with what depends on the members: their number, the plan, and the limits of the job."""
    plan = members.plan_of_tags(builder.plan(), builder.rows, tags)
    return replace(record, num_tasks=builder.rows, plan=plan, policy=policy.resolve(builder.rows, tracker.store.now))


def _run_inline(
    tracker: Tracker, record: JobRecord, found: list[Stages], tags: PlanSpec | None, policy: PolicySpec
) -> Job:
    """Create a job and run its members in this process, as Celery does in eager mode."""
    plan = members.PlanBuilder.of(members.tags_of(tracker.app, stages) for stages in found)
    record = _planned(tracker, record, plan, tags, policy)
    bound = [bind(tracker.app, record, row, stages) for row, stages in enumerate(found)]
    if any(each[-1].next == RESULT for each in bound):
        record = replace(record, results=record.results or SOME_ROWS)
    job = Job(tracker, tracker.store.create_job(record))
    run_members(job, tracker, record, found)
    return job
