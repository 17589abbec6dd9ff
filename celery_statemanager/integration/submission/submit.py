"""Create a job, then publish one message for each of its rows (rule R12)."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from celery import Celery
from celery.canvas import Signature, chain
from celery.exceptions import NotRegistered
from kombu.exceptions import EncodeError

from celery_statemanager import completion
from celery_statemanager.errors import StoreUnavailable, SubmitFailed
from celery_statemanager.integration.binding import Binding
from celery_statemanager.integration.callbacks import callback_to_json, publish_decided
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.integration.submission import members
from celery_statemanager.integration.submission.job import Job
from celery_statemanager.integration.submission.members import Members, Stages, as_signature
from celery_statemanager.integration.task.outcomes import describe
from celery_statemanager.limits import check_id
from celery_statemanager.models import Scope
from celery_statemanager.plan import PlanSpec
from celery_statemanager.records import LATCHES, JobRecord, Latch, Submission, new_job
from celery_statemanager.retention import change_job

logger = logging.getLogger(__name__)

PUBLISHER_LEASE = 60.0
"""Seconds for which a publisher is believed to live without another sign of it."""

EAGER_PUBLISHER_LEASE = 86_400.0
"""The same where members run inline: between two signs lies a whole member."""

_TURN = 0.5

PATIENCE = 20.0
"""Seconds for which a publisher tries to tell a store that is away that it has published everything."""


def submit(
    tracker: Tracker,
    tasks: Iterable[Any],
    *,
    job_id: str | UUID | None,
    run_token: str | UUID | None,
    tags: PlanSpec | None,
    callbacks: Mapping[str, Signature[Any] | None],
) -> Job:
    """See ``StateManager.submit``."""
    app = tracker.app
    latches = {name: _latch(app, name, as_signature(app, each)) for name, each in callbacks.items()}
    if job_id is not None:
        check_id("job_id", job_id)
    found, derived, num_tasks = members.read(app, tasks)
    name = f"job-{secrets.token_hex(5)}" if job_id is None else job_id
    record = new_job(name, num_tasks, run_token=run_token)
    record = replace(record, plan=members.widened(derived, num_tasks, tags), latches=latches)
    submission = Submission(published=0, done=False, alive_until=_alive_until(tracker))
    record = tracker.store.create_job(replace(record, submission=submission))
    job = Job(tracker, record)
    publisher = _Publisher(tracker, record)
    try:
        publisher.publish(found)
        publisher.finish()
    except BaseException as error:
        publisher.give_up()
        if not isinstance(error, Exception):
            raise
        failed = SubmitFailed(record.job_id, publisher.published, num_tasks, describe(error))
        failed.job = job
        raise failed from error
    return job


def _latch(app: Celery, name: str, callback: Any) -> Latch:
    text = callback_to_json(name, callback)
    if callback is not None:
        try:
            members.check_call(app, f"on_{name}", callback, "job_id")
        except TypeError as error:
            hint = "it is immutable and gets its own arguments only"
            hint = hint if callback.immutable else f"the job_id is prepended, {callback.task}.si(…) leaves it out"
            raise TypeError(f"{error} ({hint})") from None
    return Latch(text)


class _Publisher:
    """Sends a job's messages, leaving a sign of life in the job's record now and then."""

    def __init__(self, tracker: Tracker, record: JobRecord) -> None:
        self._tracker = tracker
        self._record = record
        self._eager = tracker.app.conf.task_always_eager
        self._next_note = time.monotonic() + PUBLISHER_LEASE / 6
        self.published = 0

    def publish(self, found: Members) -> None:
        app = self._tracker.app
        with app.producer_or_acquire() as producer:
            for row, stages in enumerate(found):
                self._send(row, stages, producer)
                self.published = row + 1
                if time.monotonic() > self._next_note:
                    self._sign_life()

    def finish(self) -> None:
        """Record that all is published; a store that is away is waited for. Raises: StoreError."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self._note(done=True)
            except StoreUnavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_TURN)

    def _sign_life(self) -> None:
        """Record how far publishing has come; where that fails, the lease has room for another try."""
        self._next_note = time.monotonic() + PUBLISHER_LEASE / 6
        try:
            self._note(done=False)
        except StoreUnavailable as error:
            job_id = self._record.job_id
            logger.warning("job %r is published on: %s", job_id, error, extra={"job_id": job_id})

    def _note(self, *, done: bool) -> None:
        submission = Submission(self.published, done, _alive_until(self._tracker))
        change_job(self._tracker.store, self._record.ref, lambda job: replace(job, submission=submission))

    def give_up(self) -> None:
        """Cancel the job: what was published is vetoed, what was not is never waited for."""
        reason = f"submit failed after {self.published} of {self._record.num_tasks}"
        try:
            completion.cancel(self._tracker.store, self._record.ref, reason)
            self._note(done=True)
            publish_decided(self._tracker, self._record.ref, LATCHES)
        except Exception:
            job_id = self._record.job_id
            logger.exception("job %r is left to the sweep", job_id, extra={"job_id": job_id})

    def _send(self, row: int, stages: Stages, producer: Any) -> None:
        app, ref = self._tracker.app, self._record.ref
        bound = [
            Binding(ref, row, members.tag_of(app, stage), number).bind(stage) for number, stage in enumerate(stages)
        ]
        if self._eager:
            self._run_inline(row, bound)
        elif len(bound) == 1:
            bound[0].apply_async(producer=producer, add_to_parent=False)
        else:
            chain(*bound, app=app).apply_async(producer=producer, add_to_parent=False)

    def _run_inline(self, row: int, stages: Stages) -> None:
        """Run a member here and now; a stage that fails is a state of the job, not a failure to publish."""
        try:
            (chain(*stages) if len(stages) > 1 else stages[0]).apply_async()
        except Exception as error:
            if isinstance(error, (EncodeError, NotRegistered)) and not self._has_states(row):
                raise
            about = {"job_id": self._record.job_id, "task_index": row}
            logger.info("a member failed in eager mode", exc_info=True, extra=about)

    def _has_states(self, row: int) -> bool:
        return any(True for _ in self._tracker.store.list_states(self._record.ref, Scope(task_index=row)))


def _alive_until(tracker: Tracker) -> int:
    lease = EAGER_PUBLISHER_LEASE if tracker.app.conf.task_always_eager else PUBLISHER_LEASE
    return tracker.store.now() + round(lease * 1_000_000)
