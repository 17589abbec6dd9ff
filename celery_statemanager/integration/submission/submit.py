"""Creating a job: its messages are made and stored, the job is created, and they are published (rules R12, R19)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
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
from celery_statemanager.integration.submission.transactions import (
    OpenTransaction,
    Pending,
    open_transaction,
    warn_of_deferral,
)
from celery_statemanager.limits import check_max_in_flight, encode_metadata, short_repr
from celery_statemanager.plan import Plan, PlanSpec
from celery_statemanager.policies import PolicySpec
from celery_statemanager.records import EVERY_ROW, SOME_ROWS, Flow, JobKey, JobRecord, job_key, new_incarnation
from celery_statemanager.stores.capabilities import JobCreator
from celery_statemanager.texts import describe

_WITHOUT_ROWS = ("success", "settled")
"""The latches that are decided when a job without rows is created."""


@dataclass(frozen=True)
class Options:
    """The checked options of a submission; see ``StateManager.submit``.

    Attributes:
        callbacks: the callback of each latch, by the latch's name.
        stall: the options about stalled tasks.
    """

    tags: PlanSpec | None
    callbacks: Mapping[str, Signature[Any] | None]
    max_in_flight: int | None
    policy: PolicySpec
    metadata: Mapping[str, Any] | None
    results: bool
    stall: StallOptions | None


def submit(
    tracker: Tracker,
    tasks: Any,
    job_id: str | UUID | None,
    run_token: str | UUID | None,
    using: str | None,
    **given: Any,
) -> Job:
    """Create a job and publish its messages, at once or after a commit; see ``StateManager.submit``.

    Args:
        given: the fields of ``Options``.
    """
    options = Options(**given)
    transaction = None if using is None else open_transaction(using)
    prepared = _prepare(tracker, tasks, options, job_id, run_token)
    if transaction is None:
        record, publish = _create(tracker, tracker.store, prepared, options)
        publish()
        return Job(tracker, record)
    creator = None if tracker.app.conf.task_always_eager else tracker.store.join(transaction.caller)
    if creator is None:
        return _defer(tracker, transaction, prepared, options)
    with transaction.savepoint():
        record, publish = _create(tracker, creator, prepared, options)
        pending = Pending(transaction)
        transaction.on_commit(lambda: pending.created(record), robust=True)
        transaction.on_commit(publish, robust=True)
    return Job(tracker, record, pending)


def _defer(tracker: Tracker, transaction: OpenTransaction, prepared: _Prepared, options: Options) -> Job:
    """Create a job and publish its messages after a commit."""
    if not tracker.app.conf.task_always_eager:
        warn_of_deferral(repr(tracker.store), transaction.database)
    app, pending = tracker.app, Pending(transaction)
    found = [members.copied(app, stages) for stages in prepared.found]  # the caller may change theirs
    submitted = replace(prepared.record, num_tasks=len(found))

    def run() -> None:
        record, publish = _create(tracker, tracker.store, replace(prepared, found=iter(found)), options)
        pending.created(record)
        publish()

    transaction.on_commit(run, robust=False)
    return Job(tracker, submitted, pending)


@dataclass(frozen=True)
class _Prepared:
    """A checked submission that is not stored yet.

    Attributes:
        record: the job, without what depends on its members.
        found: the members, checked one by one.
    """

    record: JobRecord
    found: Iterator[Stages]
    is_chord: bool


def _prepare(
    tracker: Tracker, tasks: Any, options: Options, job_id: str | UUID | None, run_token: str | UUID | None
) -> _Prepared:
    """Check what was submitted."""
    app, results, callbacks = tracker.app, options.results, options.callbacks
    if not isinstance(results, bool):
        raise TypeError(f"results must be True or False, not {short_repr(results)}")
    latches = {name: latch_of(app, name, as_signature(app, each)) for name, each in callbacks.items()}
    tasks, is_chord = as_signature(app, tasks), False
    if chords.is_chord(tasks):
        chord = chords.read_chord(app, tasks, callbacks["success"])
        tasks, is_chord, latches = chord.header, True, {**latches, **chord.latches}
        results = results or chord.takes_results
    key = job_key(f"job-{secrets.token_hex(5)}" if job_id is None else job_id, run_token)
    check_max_in_flight(options.max_in_flight)
    metadata = encode_metadata(options.metadata)
    found = members.read(app, tasks, may_be_empty=is_chord)
    kept = EVERY_ROW if results else None
    record = JobRecord(*key, new_incarnation(), 0, metadata=metadata, results=kept, latches=latches)
    return _Prepared(record, found, is_chord)


def _create(
    tracker: Tracker, creator: JobCreator, prepared: _Prepared, options: Options
) -> tuple[JobRecord, Callable[[], object]]:
    """Create a job; return it, and a function that publishes its messages."""
    record, found = prepared.record, prepared.found
    _check_free(creator, record.key)
    if prepared.is_chord:
        first = next(found, None)
        if first is None:
            record = _without_rows(creator, record)
            return record, partial(publish_decided, tracker, record.ref, _WITHOUT_ROWS)
        found = chain([first], found)
    if tracker.app.conf.task_always_eager:
        stages = [members.copied(tracker.app, each) for each in found]
        return _run_inline(tracker, record, stages, options), lambda: None
    return _accepted(tracker, creator, record, found, options), partial(publish_due, tracker, record.ref)


def _check_free(creator: JobCreator, key: JobKey) -> None:
    """Check that no job has the key, before anything of the new one is stored. Raises: JobExists, StoreError."""
    try:
        creator.get_job(key)
    except JobNotFound:
        return
    raise JobExists(*key)


def _accepted(
    tracker: Tracker, creator: JobCreator, record: JobRecord, found: Iterable[Stages], options: Options
) -> JobRecord:
    """Store the messages of a job, then create it. On any error, nothing of it remains."""
    plan, delays, blocks = members.PlanBuilder(), Delays(), BlockWriter(creator, record.ref)
    try:
        with Capture(tracker.app) as capture:
            results = record.results == EVERY_ROW
            maker = MessageMaker(tracker.app, record.ref, capture, results=results, stall=options.stall)
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
        record = replace(_planned(creator, record, plan, options), results=maker.kept)
        flow = Flow(options.max_in_flight, delayed=delays.rows, delayed_until=delays.until)
        return _created(creator, replace(record, flow=flow))
    except BaseException:
        with suppress(StoreError):  # then a sweep drops it
            creator.drop_draft(record.ref)
        raise


def _created(creator: JobCreator, record: JobRecord) -> JobRecord:
    """Create a job. If the store does not answer, look whether it has created it."""
    try:
        return creator.create_job(record)
    except StoreUnavailable:
        with suppress(JobNotFound):
            found = creator.get_job(record.key)
            if found.incarnation == record.incarnation:
                return found
        raise


def _without_rows(creator: JobCreator, record: JobRecord) -> JobRecord:
    """Create the job of a chord with an empty header, which has succeeded."""
    now = creator.now()
    decided = {name: replace(record.latches[name], decided_at=now) for name in _WITHOUT_ROWS}
    return _created(creator, replace(record, plan=Plan(()), latches={**record.latches, **decided}))


def _planned(creator: JobCreator, record: JobRecord, builder: members.PlanBuilder, options: Options) -> JobRecord:
    """Return the record with what depends on the members: their number, the plan, and the limits of the job."""
    plan = members.plan_of_tags(builder.plan(), builder.rows, options.tags)
    return replace(record, num_tasks=builder.rows, plan=plan, policy=options.policy.resolve(builder.rows, creator.now))


def _run_inline(tracker: Tracker, record: JobRecord, found: list[Stages], options: Options) -> JobRecord:
    """Create a job and run its members in this process, as Celery does in eager mode."""
    plan = members.PlanBuilder.of(members.tags_of(tracker.app, stages) for stages in found)
    record = _planned(tracker.store, record, plan, options)
    bound = [bind(tracker.app, record, row, stages) for row, stages in enumerate(found)]
    if any(each[-1].next == RESULT for each in bound):
        record = replace(record, results=record.results or SOME_ROWS)
    record = tracker.store.create_job(record)
    run_members(Job(tracker, record), tracker, record, found)
    return record
