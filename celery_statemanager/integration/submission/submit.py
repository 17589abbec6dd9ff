"""Creating a job and publishing one message for each of its rows (rule R12)."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from uuid import UUID

from celery import Celery
from celery.canvas import Signature, chain
from celery.exceptions import NotRegistered
from kombu.exceptions import EncodeError
from kombu.utils.json import loads

from celery_statemanager import completion
from celery_statemanager.errors import StoreUnavailable, SubmitFailed
from celery_statemanager.integration import publication
from celery_statemanager.integration.binding import Binding
from celery_statemanager.integration.callbacks import callback_to_json, publish_decided
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.integration.submission import calls, members
from celery_statemanager.integration.submission.delays import Delays
from celery_statemanager.integration.submission.job import Job
from celery_statemanager.integration.submission.members import Members, as_signature
from celery_statemanager.integration.submission.spool import Stages, serializer_of
from celery_statemanager.integration.task.outcomes import describe
from celery_statemanager.limits import check_id, short_repr
from celery_statemanager.models import Scope
from celery_statemanager.plan import PlanSpec
from celery_statemanager.records import LATCHES, JobRecord, Latch, Submission, new_job
from celery_statemanager.retention import change_job

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timings:
    """Periods of a publisher in seconds.

    Attributes:
        lease: how long a publisher counts as alive after it has recorded its progress.
        eager_lease: the same in eager mode, where a member runs between two records.
        patience: how long it retries to record the end of publishing while the store is unavailable.
        pause: the time between two of these tries.
    """

    lease: float = 60.0
    eager_lease: float = 86_400.0
    patience: float = 20.0
    pause: float = 0.5


def submit(
    tracker: Tracker,
    tasks: Iterable[Any],
    *,
    job_id: str | UUID | None,
    run_token: str | UUID | None,
    tags: PlanSpec | None,
    callbacks: Mapping[str, Signature[Any] | None],
    timings: Timings = Timings(),
) -> Job:
    """Create a job and publish its messages; see ``StateManager.submit``.

    Args:
        callbacks: the callback of each latch, by the latch's name.
    """
    app = tracker.app
    latches = {name: _latch(app, name, as_signature(app, each)) for name, each in callbacks.items()}
    if job_id is not None:
        check_id("job_id", job_id)
    found, derived, num_tasks = members.read(app, tasks)
    name = f"job-{secrets.token_hex(5)}" if job_id is None else job_id
    record = new_job(name, num_tasks, run_token=run_token)
    record = replace(record, plan=members.plan_of_tags(derived, num_tasks, tags), latches=latches)
    submission = _submission(tracker, timings, published=0, done=False)
    record = tracker.store.create_job(replace(record, submission=submission))
    job = Job(tracker, record)
    publisher = _Publisher(tracker, record, timings)
    try:
        publisher.publish(found)
        publisher.finish()
    except BaseException as error:
        cancelled = publisher.give_up()
        if not isinstance(error, Exception):
            raise
        failed = SubmitFailed(record.job_id, publisher.published, num_tasks, describe(error), cancelled)
        failed.job = job
        raise failed from error
    return job


def _latch(app: Celery, name: str, callback: Any) -> Latch:
    text = callback_to_json(name, callback)
    if callback is not None and text is not None:
        _check_kept(app, name, callback, text)
        try:
            calls.check_call(app, f"on_{name}", callback, "job_id")
        except TypeError as error:
            hint = "it is immutable and gets only its own arguments"
            hint = hint if callback.immutable else f"the job_id is prepended, {callback.task}.si(…) leaves it out"
            raise TypeError(f"{error} ({hint})") from None
    return Latch(text)


def _check_kept(app: Celery, name: str, callback: Any, text: str) -> None:
    """Check that a callback is stored unchanged, if its arguments are not sent as JSON anyway. Raises: TypeError."""
    kept = loads(text)
    if serializer_of(app, callback) != "json" and not (
        _same([*callback.args], kept["args"]) and _same({**callback.kwargs}, kept["kwargs"])
    ):
        raise TypeError(
            f"on_{name}, task {callback.task}: callbacks are stored as JSON, which would change its arguments to "
            f"{short_repr(kept['args'])} {short_repr(kept['kwargs'])}: pass lists instead of tuples or sets, and "
            "dictionaries with string keys"
        )


def _same(given: Any, kept: Any) -> bool:
    """Return whether two values are equal and of the same types, in depth."""
    if type(given) is not type(kept):
        return False
    if isinstance(given, dict):
        return given.keys() == kept.keys() and all(_same(given[key], kept[key]) for key in given)
    if isinstance(given, (list, tuple)):
        return len(given) == len(kept) and all(map(_same, given, kept))
    return bool(given == kept)


def _submission(tracker: Tracker, timings: Timings, published: int, *, done: bool) -> Submission:
    """Return the record of a publisher's progress, which is valid for one lease."""
    lease = timings.eager_lease if tracker.app.conf.task_always_eager else timings.lease
    return Submission(published, done, alive_until=tracker.store.now() + round(lease * 1_000_000))


class _Publisher:
    """Publishes the messages of a job and records its progress in the job."""

    def __init__(self, tracker: Tracker, record: JobRecord, timings: Timings) -> None:
        self._tracker = tracker
        self._record = record
        self._timings = timings
        self._next_record = time.monotonic() + timings.lease / 6
        self._delays = Delays()
        self.published = 0

    def publish(self, found: Members) -> None:
        app = self._tracker.app
        with app.producer_or_acquire() as producer:
            for row, stages in enumerate(found):
                self._send(row, stages, producer)
                self.published = row + 1
                if time.monotonic() > self._next_record:
                    self._renew_lease()

    def finish(self) -> None:
        """Record that all messages are published; retry while the store is unavailable. Raises: StoreError."""
        deadline = time.monotonic() + self._timings.patience
        while True:
            try:
                return self._record_progress(done=True)
            except StoreUnavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(self._timings.pause)

    def _renew_lease(self) -> None:
        """Record how many messages are published; log a failure, because the lease leaves time for further tries."""
        self._next_record = time.monotonic() + self._timings.lease / 6
        try:
            self._record_progress(done=False)
        except StoreUnavailable as error:
            job_id = self._record.job_id
            text = "cannot record how many messages of job %r are published, will retry: %s"
            logger.warning(text, job_id, error, extra={"job_id": job_id})

    def _record_progress(self, *, done: bool) -> None:
        submission = _submission(self._tracker, self._timings, self.published, done=done)
        submission = replace(submission, delayed=self._delays.rows, delayed_until=self._delays.until)
        change_job(self._tracker.store, self._record.ref, lambda job: replace(job, submission=submission))

    def give_up(self) -> bool:
        """Cancel the job: tasks that were published are vetoed, and nothing waits for the others.

        Returns: whether it is cancelled; if the store fails, it is left to the sweep.
        """
        reason, cancelled = f"submit failed after {self.published} of {self._record.num_tasks}", False
        try:
            completion.cancel(self._tracker.store, self._record.ref, reason)
            cancelled = True
            self._record_progress(done=True)
            publish_decided(self._tracker, self._record.ref, LATCHES)
        except Exception:
            job_id = self._record.job_id
            text = "cannot cancel job %r, whose submit failed: it is left to the sweep"
            logger.exception(text, job_id, extra={"job_id": job_id})
        return cancelled

    def _send(self, row: int, stages: Stages, producer: Any) -> None:
        app, ref = self._tracker.app, self._record.ref
        bindings = [Binding(ref, row, members.tag_of(app, stage), number) for number, stage in enumerate(stages)]
        bound = [binding.bind(stage) for binding, stage in zip(bindings, stages, strict=True)]
        self._delays.add(row, bound[0].options)
        if app.conf.task_always_eager:
            self._run_inline(row, bound)
            return
        member: Any = bound[0] if len(bound) == 1 else chain(*bound, app=app)
        apply = partial(member.apply_async, producer=producer, add_to_parent=False)
        publication.send(
            self._tracker, bindings[0], str(bound[0].task), apply, partial(publish_decided, self._tracker, ref)
        )

    def _run_inline(self, row: int, stages: Stages) -> None:
        """Run a member; a failure of a stage is a state of the job and does not end the submission."""
        try:
            (chain(*stages) if len(stages) > 1 else stages[0]).apply_async()
        except Exception as error:
            if isinstance(error, (EncodeError, NotRegistered)) and not self._has_states(row):
                raise
            log_extra = {"job_id": self._record.job_id, "task_index": row}
            logger.info("a task failed in eager mode", exc_info=True, extra=log_extra)

    def _has_states(self, row: int) -> bool:
        return any(True for _ in self._tracker.store.list_states(self._record.ref, Scope(task_index=row)))
