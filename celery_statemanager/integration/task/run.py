"""One execution of a tracked task: its attempt, and all state writes made for it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery import Task

from celery_statemanager import attempts, leases
from celery_statemanager.codec import state_of
from celery_statemanager.errors import (
    AttemptSuperseded,
    BeginRefused,
    ConfigurationError,
    JobCancelled,
    JobNotFound,
    StateManagerError,
    StoreError,
    StoreUnavailable,
)
from celery_statemanager.integration import requests, results
from celery_statemanager.integration.binding import Binding
from celery_statemanager.integration.callbacks import publish_decided
from celery_statemanager.integration.installed import Tracker, tracker_of
from celery_statemanager.integration.outbox import changed
from celery_statemanager.integration.outbox.publisher import write
from celery_statemanager.integration.outbox.values import pass_on
from celery_statemanager.integration.stalling import Limit, limit_of
from celery_statemanager.integration.task import outcomes, running
from celery_statemanager.integration.task.motion import Motion
from celery_statemanager.limits import sanitize
from celery_statemanager.manager import Manager
from celery_statemanager.models import FINISHED, State, Status
from celery_statemanager.records import Begin, Cell, Delivery, JobRef, Verdict, When, Write, WriteReply

logger = logging.getLogger(__name__)

VETOES = "_statemanager_vetoes"
"""The attribute that marks a ``before_start`` with the veto."""


class Run:
    """A tracked execution, kept on its task request from ``task_prerun`` to ``task_postrun``.

    Attributes:
        attempt: its number; None if the store failed or rejected it.
        verdict: why the attempt was rejected; None if it was not.
        replaced_by: the name of the task that replaces this one under its id.
        sent: the Celery task ids of the messages of its row that it has published or tried to publish.
        retry_sent: the delivery of the retry that this execution has published.
        following: the message of its retry or replacement as JSON, if it differs from the stored one.
        held_progress: the JSON text and the message of the newest progress that was not written.
        ended: whether later writes have no effect, because the last state is written or another attempt owns the cell.
        motion: the clock of its body; None without ``stall_after``, or before it has begun.
        manager: the Manager created by ``task.manager.manager_of``; protected by ``manager_lock``.

    Args:
        owner: the id of the worker; None in eager mode.
        message: the message of the task as JSON, if it differs from the stored one.
        may_wait: whether its row goes back to the outbox if the job is paused and the row has not begun.
        alone: the state of the worker's own earlier attempts of the cell.
        limit: when it counts as stalled; None for never.
    """

    def __init__(
        self,
        tracker: Tracker,
        binding: Binding,
        delivery: Delivery,
        owner: str | None,
        message: str | None,
        alone: attempts.Alone | None,
        *,
        may_wait: bool = False,
        limit: Limit | None = None,
    ) -> None:
        self.tracker = tracker
        self.binding = binding
        self.delivery = delivery
        self.attempt: int | None = None
        self.verdict: Verdict | None = None
        self.ended = False
        self.replaced_by: str | None = None
        self.sent: set[str] = set()
        self.retry_sent: Delivery | None = None
        self.following: str | None = None
        self.held_progress: tuple[str, str | None] | None = None
        self.limit = limit
        self.motion: Motion | None = None
        self.manager: Manager | None = None
        self.manager_lock = threading.Lock()
        self._known: Cell | None = None
        self._ending: Write | None = None
        self._value: str | None = None
        self._begin = Begin(
            tag=binding.tag,
            task_index=binding.task_index,
            delivery=delivery,
            owner=owner,
            kept=message,
            may_wait=may_wait,
            stall_after=0 if limit is None else round(limit.after * 1_000_000),
        )
        self._may_have_begun = {self._begin.event_id}
        """The event ids of the steps that may have begun the attempt, although their response was lost."""
        self._alone = alone
        self._next_progress = 0.0

    @property
    def log_extra(self) -> dict[str, Any]:
        """The fields that every log record about it has."""
        return self.binding.log_extra

    def begin(self) -> None:
        """Begin an attempt; if the store fails, the first write of the task begins it."""
        store, limit = self.tracker.store, self.tracker.settings.max_lost
        try:
            reply = attempts.begin(store, self.binding.ref, self._begin, max_lost=limit, alone=self._alone)
        except JobNotFound:
            self.verdict, self.ended = Verdict.CLOSED, True
            _warn_unknown_job(repr(store), self.binding.ref)
            return
        except StateManagerError as error:
            self._log(error)
            return
        if reply.verdict is Verdict.BEGUN:
            self.attempt, self._known = reply.cell.attempt, reply.cell
        else:
            self.verdict, self.ended = reply.verdict, True
            logger.info("not run: %s is %s", self.binding.celery_task_id, reply.verdict.value, extra=self.log_extra)
        publish_decided(self.tracker, self.binding.ref, reply.decided)

    def progress_is_due(self) -> bool:
        """Return whether progress may be written now, and if so, count it as written."""
        now = time.monotonic()
        if now < self._next_progress:
            return False
        self._next_progress = now + self.tracker.settings.progress_interval
        return True

    @property
    def cell(self) -> tuple[str, int]:
        """The tag and the row of its cell."""
        return self.binding.tag, self.binding.task_index

    def known_state(self) -> State | None:
        """Return the state that the store returned last for this attempt; None before it numbered the attempt.

        Only this attempt may write the cell, so the stored state is the same, or a later write whose response was lost.
        """
        return None if self._known is None else self._to_state(self._known)

    def write(self, request: Write) -> State:
        """Write the cell.

        Raises: TaskStalled, AttemptSuperseded, BeginRefused, JobCancelled, JobNotFound, StoreError.
        """
        self._stop_if_stalled()
        return self._to_state(self._put(request).cell)

    def end(self, status: int, message: str | None = None, *, keep_app_status: bool = True) -> None:
        """Write the last state and end the attempt; later writes have no effect."""
        progress, held_message = self.held_progress or (None, None)
        message = held_message if message is None else message
        text = None if message is None else sanitize(message)
        self._end_with(Write.ending(*self.cell, status, text, progress=progress, keep_app_status=keep_app_status))

    def finish(self, result: Any) -> None:
        """End the attempt of a task that has returned, and publish the next stage of its row."""
        if self.ended:
            return
        last = Write.ending(*self.cell, FINISHED)
        try:
            self._value = pass_on(last, self.binding, result, self.tracker.settings.max_result_bytes)
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:  # noqa: BLE001 - a value's own __json__ may raise anything
            cause = outcomes.describe(error)
            message = f"returned, but the next stage cannot take its value: {cause}"
            self.end(int(Status.FAILED), message, keep_app_status=False)
            return
        last.new_progress, held_message = self.held_progress or (None, None)
        last.message = None if held_message is None else sanitize(held_message)
        self._end_with(last)

    def note_sent(self, task_id: str | None) -> None:
        """Record that a message is about to be published, if it belongs to the row of this execution."""
        row = self.binding.celery_task_id.rpartition(".")[0] + "."
        if task_id is not None and task_id.startswith(row):
            self.sent.add(task_id)

    def fail(self, error: BaseException) -> None:
        """End the attempt of a task that raised. If it has sent a retry before, the cell waits for that."""
        status, message = outcomes.failure(error)
        if self.retry_sent is not None:
            self.await_delivery(f"retried, then {message}", self.retry_sent)
        else:
            self.end(status, message, keep_app_status=not outcomes.sets_status(error))

    def await_delivery(self, message: str, next_delivery: Delivery) -> None:
        """End the attempt without a final state, because another delivery follows: this one again if it is requeued."""
        returned = Write.returned(*self.cell, sanitize(message), next_delivery)
        returned.new_progress = self.held_progress[0] if self.held_progress else None
        returned.awaits_delivery = next_delivery == self.delivery
        returned.kept = self.following
        self._end_with(returned)

    def _end_with(self, last: Write) -> None:
        if self.ended:
            return
        self._ending = request = self._ending or last  # a soft time limit may have interrupted the write of the first
        try:
            self._now_or_later("end", lambda: self._put(request))
        except StateManagerError as error:
            self._log(error)
        self.ended = True

    def write_or_queue(self, request: Write) -> State | None:
        """Write the cell; queue the write and return None while the store is unavailable. Raises: as ``write``."""
        self._stop_if_stalled()
        written: list[WriteReply] = []
        self._now_or_later("state", lambda: written.append(self._put(request)))
        return self._to_state(written[0].cell) if written else None

    def watch(self, task: Any) -> None:
        """Begin to watch whether the body moves, if it has a limit."""
        if self.limit is not None and self.motion is None:
            self.motion = Motion(self, task, self.limit, self._known)
            self.motion.begin()

    def _stop_if_stalled(self) -> None:
        if self.motion is not None:
            self.motion.stop_if_stalled()

    def _now_or_later(self, kind: str, action: Callable[[], object]) -> None:
        name = leases.cell_name(self.binding.ref, *self.cell)
        self.tracker.backlog.now_or_later((name, kind), action, self.log_extra)

    def _put(self, request: Write) -> WriteReply:
        if self.motion is None:
            return self._put_now(request)
        with self.motion.waits():
            reply = self._put_now(request)
        self.motion.wrote(reply.cell)
        return reply

    def _put_now(self, request: Write) -> WriteReply:
        try:
            reply = self._send(request)
        except BeginRefused:
            attempt = self._attempt_without_response() if self.attempt is None else None
            if attempt is None:
                raise
            self.attempt = attempt
            reply = self._send(request)
        self.attempt, self._known = reply.cell.attempt, reply.cell
        return reply

    def _send(self, request: Write) -> WriteReply:
        request.attempt, request.when, request.begin = self.attempt, When.OPEN, None
        if self.attempt is None:
            request.begin = self._begin
            self._may_have_begun.add(request.event_id)
        store, ref = self.tracker.store, self.binding.ref
        value = self._value if request.next_is_due else None
        return write(self.tracker, ref, request, lambda: attempts.write(store, ref, request, self._begin), value=value)

    def _attempt_without_response(self) -> int | None:
        """Return the open attempt if this execution began it by a step whose response was lost, else None."""
        cell = self.tracker.store.get_cell(self.binding.ref, *self.cell)
        return cell.attempt if cell and cell.open and cell.event_id in self._may_have_begun else None

    def awaits_end(self) -> bool:
        """Return whether another process closed this attempt and the store probably still accepts its end."""
        try:
            cell = self.tracker.store.get_cell(self.binding.ref, *self.cell)
        except StateManagerError:
            return False
        return cell is not None and cell.awaits_end and cell.attempt == self.attempt

    def _to_state(self, cell: Cell) -> State:
        return state_of(self.binding.ref.key.job_id, *self.cell, cell)

    def _log(self, error: StateManagerError) -> None:
        """Log a failed write; it does not fail the task."""
        if isinstance(error, (AttemptSuperseded, BeginRefused, JobCancelled, JobNotFound)):
            logger.info("state not written: %s", error, extra=self.log_extra)
        elif isinstance(error, StoreUnavailable):
            self.tracker.backlog.avoid_store()
            text = "cannot record that the task began, its first write will do so: %s"
            logger.warning(text, error, extra=self.log_extra)
        else:
            bug = None if isinstance(error, (StoreError, ConfigurationError)) else error
            task_id = self.binding.celery_task_id
            logger.error("state not written: %s: %s", task_id, error, exc_info=bug, extra=self.log_extra)


def start_run(task: Task[Any, Any], binding: Binding) -> None:
    """Begin the attempt of the current execution; do nothing in an app without a ``StateManager``.

    May be called again after a soft time limit interrupted it.
    """
    run = running.of_request(task.request) or _new_run(task, binding)
    if run is None:
        return
    running.enter(task, run)
    if run.verdict is None and not run.tracker.backlog.store_is_down:
        if results.redelivery_has_succeeded(run.tracker, binding, task):
            run.verdict, run.ended = Verdict.FINISHED, True
        else:
            run.begin()
    if run.verdict is None:
        run.watch(task)


def _new_run(task: Task[Any, Any], binding: Binding) -> Run | None:
    request, tracker = task.request, tracker_of(task.app)
    if tracker is None:
        return None
    owner = None if request.is_eager else os.environ.get(requests.WORKER_ID)
    message = changed.detach(request)
    received: Mapping[str, Any] = request.delivery_info or {}
    alone = received.get(requests.ALONE)
    delivery = binding.delivery(request)
    may_wait = vetoes(task) and not (binding.stage or delivery.replacements or delivery.retries)
    limit = None if owner is None else limit_of(task, binding.stall, tracker.settings.progress_interval)
    given = attempts.Alone(*alone) if alone else None
    run = Run(tracker, binding, delivery, owner, message, given, may_wait=may_wait, limit=limit)
    tracker.held_messages.add_body(run)
    return run


def vetoes(task: Any) -> bool:
    """Return whether a task drops a delivery whose begin was rejected; see ``base.StatefulTask.bind``."""
    return hasattr(getattr(task, "before_start", None), VETOES)


def run_of(task: Any) -> Run | None:
    """Return the current execution of a task; None if it is untracked or not in this process."""
    return running.of(task)


@lru_cache(maxsize=1_000)
def _warn_unknown_job(store: str, job: JobRef) -> None:
    """Log once that the store of this worker, printed as ``store``, does not contain the job of a task."""
    logger.warning(
        "job %r is not in this worker's store, %s: it was deleted, or submitted with another statemanager_store_url "
        "(a relative path is resolved in each process's working directory)",
        job.key.job_id,
        store,
        extra={"job_id": job.key.job_id},
    )
