"""Sweeps by workers and beat: by one process at a time, and only while expired leases can be trusted."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import replace
from functools import lru_cache, partial

from celery_statemanager import leases
from celery_statemanager.errors import StateManagerError, StoreUnavailable
from celery_statemanager.indexset import IndexSet
from celery_statemanager.integration import redelivery, requests, results
from celery_statemanager.integration.binding import RESULT, Binding
from celery_statemanager.integration.brokers import Redelivers, redelivers
from celery_statemanager.integration.callbacks import callback_task, publish_decided
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.integration.outbox import changed
from celery_statemanager.integration.outbox.envelope import Envelope
from celery_statemanager.integration.outbox.making import binding_in
from celery_statemanager.integration.outbox.publisher import publish_due, release_claims
from celery_statemanager.integration.outbox.rerun import complete_rerun
from celery_statemanager.integration.periodic import Periodic
from celery_statemanager.integration.revokes import revoke
from celery_statemanager.integration.task.run import vetoes
from celery_statemanager.integration.worker.queues import BrokerQueues
from celery_statemanager.records import CALLBACK_ROW, JobRecord, JobRef, Latch, OpenAttempt, OutboxState
from celery_statemanager.retention import current
from celery_statemanager.sweep import Sweep, SweepReport

logger = logging.getLogger(__name__)

JITTER = (0.6, 1.0)


class LeaseTrust:
    """Judge of whether an expired lease proves that its worker is dead: the worker may have been unable to renew it.

    After the store failed or was slow, it proves nothing for one lease: other workers could not renew theirs either.
    A process that has just started, or that was suspended with its machine, waits for two renewals.

    Args:
        interval: the longest time in seconds between two checks.
        clock: returns a time in seconds that never decreases, and may pause while the machine is suspended.
        wall_clock: returns a time in seconds that never pauses.
    """

    def __init__(
        self,
        lease: float,
        interval: float,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._lease = lease
        self._slow = lease / leases.RENEWALS / 2
        self._suspended_after = lease + interval
        self._clock, self._wall_clock = clock, wall_clock
        self._checked_at = wall_clock()
        self._since = self._two_renewals_from_now()

    def holds(self) -> bool:
        """Return whether expired leases can be trusted now. Must be called at every check."""
        now = self._wall_clock()
        if now - self._checked_at > self._suspended_after:
            self._since = max(self._since, self._two_renewals_from_now())
        self._checked_at = now
        return self._clock() >= self._since

    def observe(self, seconds: float) -> None:
        """Record how long the store took to answer."""
        if seconds > self._slow:
            self.lose()

    def lose(self) -> None:
        """Record that the store has failed."""
        self._since = self._clock() + self._lease

    def _two_renewals_from_now(self) -> float:
        return self._clock() + 2 * self._lease / leases.RENEWALS


class _Sweeping:
    """Sweeps when this process acquires the sweep; between two sweeps it checks whether leases can be renewed."""

    def __init__(self, tracker: Tracker, holder: str) -> None:
        self._tracker = tracker
        self._holder = holder
        self._interval = tracker.settings.sweep_interval
        self._check_interval = min(self._interval, tracker.settings.lease / 2)
        self._trust = LeaseTrust(tracker.settings.lease, self._check_interval)
        self._due = -math.inf
        self._warned = False
        self._has_swept = False

    def pause(self) -> float:
        """Return the seconds until the next check."""
        return self._check_interval * random.uniform(*JITTER)

    def check(self) -> None:
        """Sweep, if this process may. Raises: StoreError."""
        try:
            self._log_warnings()
            began = time.monotonic()
            acquired = self._acquire(began)
            self._trust.observe(time.monotonic() - began)
            if acquired and self._trust.holds():
                sweep(self._tracker)
        except StoreUnavailable:
            self._trust.lose()
            raise

    def _log_warnings(self) -> None:
        """Log the problems in the settings of the store's server, once."""
        if not self._warned:
            for warning in self._tracker.store.server_warnings():
                logger.warning("check the store: %s", warning)
            self._warned = True

    def _acquire(self, now: float) -> bool:
        if now >= self._due and self._trust.holds():
            if self._lost_records():
                self._trust.lose()
                return False
            acquired = leases.try_acquire(self._tracker.store, self._holder, self._interval)
            self._due = now + self._interval * JITTER[0]
            self._has_swept = True
            return acquired
        leases.check_writable(self._tracker.store)  # without trust it could not sweep: leave the acquisition to others
        return False

    def _lost_records(self) -> bool:
        """Return whether the records of workers have disappeared since the last sweep, because a server evicts keys."""
        if not self._has_swept or self._tracker.store.get_worker(leases.SWEEPER) is not None:
            return False
        self._has_swept = False
        logger.warning("the store has lost the records of workers: no worker counts as dead for one lease")
        return True


def keep_sweeping(tracker: Tracker, holder: str) -> Periodic:
    """Start a thread that sweeps whenever this holder acquires the sweep."""
    sweeping = _Sweeping(tracker, holder)
    return Periodic("sweep", sweeping.check, sweeping.pause).start()


class _AppActions(BrokerQueues):
    """Publishes the messages that a sweep found due, through the tracker's app."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__(tracker)
        self._results_failed = False
        self.broker_redelivers = redelivers(tracker.app) is Redelivers.AT_ONCE

    def resend(self, ref: JobRef, message: str) -> bool:
        ours = self._is_ours(ref, changed.task_name(message))
        if ours:
            changed.publish_kept(self._tracker.app, message)
        return ours

    def finish_if_succeeded(self, attempt: OpenAttempt) -> bool:
        """Read the result backend. After an error, do not read it again."""
        if self._results_failed:
            return False
        ref, may_send = attempt.ref, partial(self._is_ours, attempt.ref)
        try:
            found = self._stage_of(attempt)
            binding = Binding(ref, attempt.task_index, attempt.tag) if found is None else binding_in(found)
            binding = replace(binding, generation=attempt.cell.generation)
            if attempt.task_index == CALLBACK_ROW and self._latch_of(ref, attempt.tag).is_body:
                binding = replace(binding, next=RESULT)
            name = self._task_of(attempt)
            task = None if name is None else self._tracker.app.tasks.get(name)
            return results.finish_attempt(self._tracker, binding, attempt, task, may_send)
        except StateManagerError:
            raise
        except Exception as error:  # noqa: BLE001 - a result backend raises errors of any client library
            self._results_failed = True
            logger.warning(
                "sweep: cannot read the result backend, lost attempts are handled without it: %s",
                error,
                extra={"job_id": attempt.ref.key.job_id},
            )
            return False

    def runs_again(self, attempt: OpenAttempt) -> bool | None:
        name = self._task_of(attempt)
        if name is None:
            return False
        if not self._is_ours(attempt.ref, name):
            return None
        return redelivery.requeues(self._tracker.app.tasks[name], self._tracker.settings.on_lost)

    def may_publish_again(self, ref: JobRef, tag: str, row: int) -> bool:
        if row == CALLBACK_ROW:
            name = self._task_of_callback(ref, tag)
        else:
            stage = self._stage(ref, tag, row)
            name = None if stage is None else str(stage["task"])
        task = self._tracker.app.tasks.get(name or "")
        return task is None or vetoes(task) or redelivery.requeues(task, self._tracker.settings.on_lost)

    def _task_of(self, attempt: OpenAttempt) -> str | None:
        """Return the name of the task of an attempt; None if its message is not stored."""
        if attempt.cell.kept is not None and attempt.cell.kept != changed.TOO_LARGE:
            return changed.task_name(attempt.cell.kept)
        if attempt.task_index == CALLBACK_ROW:
            return self._task_of_callback(attempt.ref, attempt.tag)
        found = self._stage_of(attempt)
        return None if found is None else str(found["task"])

    def _task_of_callback(self, ref: JobRef, tag: str) -> str | None:
        """Return the name of the task of the callback that runs in the cell with a tag."""
        return callback_task(self._latch_of(ref, tag))

    def _latch_of(self, ref: JobRef, tag: str) -> Latch:
        """Return the latch whose callback runs in the cell with a tag."""
        job = current(self._tracker.store, ref)
        return job.latches.get(job.latch_of(tag), Latch())

    def _stage_of(self, attempt: OpenAttempt) -> Envelope | None:
        """Return the stored message of the stage of an attempt; None if there is none."""
        if attempt.task_index == CALLBACK_ROW or current(self._tracker.store, attempt.ref).flow is None:
            return None
        return self._stage(attempt.ref, attempt.tag, attempt.task_index)

    def _stage(self, ref: JobRef, tag: str, row: int) -> Envelope | None:
        """Return the stored message of the stage of a row; None if the row has no such stage."""
        stages = self._tracker.blocks.messages(self._tracker.store, ref, row)
        return next((stage for stage in stages if binding_in(stage).tag == tag), None)

    def publish(self, ref: JobRef, decided: tuple[str, ...]) -> int:
        return publish_decided(self._tracker, ref, decided, partial(self._is_ours, ref))

    def stop(self, ref: JobRef, decided: tuple[str, ...]) -> None:
        revoke(self._tracker, ref)
        self.publish(ref, decided)

    def publish_messages(
        self, job: JobRecord, outbox: OutboxState, dead: Collection[str], ended: Collection[str]
    ) -> int | None:
        tracker = self._tracker
        claims = [outbox.claims[name].rows for name in dead]
        rows = IndexSet().union(*claims, outbox.returned.begun, outbox.returned.waiting)
        first = rows.first if rows else min(outbox.claimed, job.num_tasks - 1)
        stages = tracker.blocks.messages(tracker.store, job.ref, first)
        if not self._is_ours(job.ref, stages[0]["task"]):
            return None
        return publish_due(tracker, job.ref, dead=dead, ended=ended, seconds=tracker.settings.sweep_interval)

    def complete_rerun(self, job: JobRecord) -> None:
        stages = self._tracker.blocks.messages(self._tracker.store, job.ref, job.generation.rows_to_reset.first)
        if self._is_ours(job.ref, stages[0]["task"]):
            complete_rerun(self._tracker, job)

    def _is_ours(self, ref: JobRef, task: str) -> bool:
        """Return whether this app has the task; a message sent by another app might reach no worker that has it."""
        ours = task in self._tracker.app.tasks
        if not ours:
            _warn_foreign(self._tracker.app.main, ref, task)
        return ours


@lru_cache(maxsize=10_000)
def _warn_foreign(app: str | None, ref: JobRef, task: str) -> None:
    logger.warning(
        "sweep: app %r has no task %r and leaves the messages of job %r to the app that has it; if no app with this "
        "store has it, add the task's module to `include`, or give each app a statemanager_store_url of its own",
        app,
        task,
        ref.key.job_id,
        extra={"job_id": ref.key.job_id},
    )


def sweep(tracker: Tracker) -> SweepReport:
    """Sweep the store once for lost workers and publishers and for due callbacks. Raises: StoreError."""
    settings = tracker.settings
    began = time.perf_counter()
    actions = _AppActions(tracker)
    with closing(actions):
        report = Sweep(tracker.store, actions, lease=settings.lease, max_lost=settings.max_lost).run()
    if not requests.worker_id():
        release_claims()
    tracker.metrics.swept(time.perf_counter() - began)
    if report:
        logger.log(
            logging.WARNING if report.marked or report.requeued else logging.INFO,
            "sweep: %d attempts marked as LOST, %d messages due again, callbacks of %d jobs published, "
            "%d messages published",
            report.marked,
            report.requeued,
            report.callbacks,
            report.published,
        )
    return report
