"""The core API: one job, and perhaps one row of it, over any store."""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from celery_statemanager import aggregate, barrier
from celery_statemanager.codec import compact, state_of
from celery_statemanager.errors import BeginRefused, JobCancelled, ReadOnlyManager, TaskMismatch
from celery_statemanager.limits import (
    MAX_STATE_BYTES,
    check_id,
    check_index,
    check_message,
    check_name,
    check_num_tasks,
    check_optional,
    check_size,
    check_status,
    check_timeout,
    encode_payload,
    short_repr,
)
from celery_statemanager.models import FINISHED, Scope, State, Summary
from celery_statemanager.plan import Plan, PlanSpec
from celery_statemanager.records import Begin, JobKey, JobRecord, JobRef, Verdict, Write, new_event_id  # noqa: F401
from celery_statemanager.retention import current, delete_job, find_job, tombstone_job
from celery_statemanager.stores.base import Store
from celery_statemanager.subscription import Subscription

_MOST_TAGS = 10
"""Tags that an error names."""


def job_key(job_id: str | UUID, run_token: str | UUID | None = None) -> JobKey:
    """Return the key that names a job. Raises: TypeError, ValueError."""
    return JobKey(check_id("job_id", job_id), None if run_token is None else check_id("run_token", run_token))


def new_job(
    job_id: str | UUID, num_tasks: int, tags: PlanSpec | None = None, run_token: str | UUID | None = None
) -> JobRecord:
    """Check what a caller gave for a job and make its record, not yet stored. Raises: TypeError, ValueError."""
    key = job_key(job_id, run_token)
    rows = check_num_tasks(num_tasks)
    plan = None if tags is None else Plan.from_spec(rows, tags)
    return JobRecord(*key, new_incarnation(), rows, plan)


def new_incarnation() -> str:
    """Give what tells a job from all others of its name."""
    return os.urandom(8).hex()


def percent(done: float, total: float) -> int:
    """Give ``done`` of ``total`` as a status, 1 … 100; 100 only when all is done. Raises: TypeError, ValueError."""
    for name, value in (("done", done), ("total", total)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} is a number, not {type(value).__name__} {short_repr(value)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is a finite number, not {value!r}")
    if not 0 <= done <= total or total <= 0:
        raise ValueError(f"progress is 0 <= done <= total and total > 0, not {short_repr(done)} of {short_repr(total)}")
    if isinstance(done, int) and isinstance(total, int):
        return max(1, 100 * done // total)
    from fractions import Fraction  # exact where a quotient of floats is not

    return max(1, math.floor(100 * Fraction(done) / Fraction(total)))


def progress_json(done: float, total: float) -> str:
    """Give the JSON text kept as ``payload["progress"]``."""
    return compact({"done": done, "total": total})


class Manager:
    """Reads a job and writes one row of it; bound to one incarnation of the job.

    Thread-safe; may be made before a fork and used after it. Get one by ``create`` or ``open``.
    """

    def __init__(
        self, store: Store, job: JobRecord, task_index: int | None = None, *, max_state_bytes: int = MAX_STATE_BYTES
    ) -> None:
        self.store = store
        self.ref: JobRef = job.ref
        self.num_tasks = job.num_tasks
        self.plan = job.plan
        self.task_index = None if task_index is None else check_index(task_index, job.num_tasks)
        self._max_state_bytes = max_state_bytes
        self._attempts: dict[str, int] = {}
        self._subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()
        self._lock = threading.Lock()

    @classmethod
    def create(
        cls,
        store: Store,
        job_id: str | UUID,
        *,
        num_tasks: int,
        task_index: int | None = None,
        tags: PlanSpec | None = None,
        run_token: str | UUID | None = None,
        max_state_bytes: int = MAX_STATE_BYTES,
    ) -> Manager:
        """Create a job and open it.

        Args:
            tags: the plan: the tags of every row in the order they run, or a mapping tag → its rows.
            run_token: tells reruns of the same ``job_id`` apart.

        Raises: JobExists, TypeError, ValueError, StoreError.
        """
        job = new_job(job_id, num_tasks, tags, run_token)
        if task_index is not None:
            check_index(task_index, num_tasks)
        return cls(store, store.create_job(job), task_index, max_state_bytes=max_state_bytes)

    @classmethod
    def open(
        cls,
        store: Store,
        job_id: str | UUID,
        *,
        task_index: int | None = None,
        run_token: str | UUID | None = None,
        max_state_bytes: int = MAX_STATE_BYTES,
    ) -> Manager:
        """Open a job. Raises: JobNotFound, ConfigurationError, TypeError, ValueError, StoreError."""
        return cls(store, find_job(store, job_key(job_id, run_token)), task_index, max_state_bytes=max_state_bytes)

    @property
    def job_id(self) -> str:
        """The name people see."""
        return self.ref.key.job_id

    @property
    def run_token(self) -> str | None:
        """What tells this run from others of the same name."""
        return self.ref.key.run_token

    @property
    def tags(self) -> tuple[str, ...]:
        """The planned tags, in the order they first run; empty without a plan."""
        return self.plan.tags if self.plan else ()

    def set_state(
        self,
        tag: str,
        status: int,
        message: str | None = None,
        payload: Mapping[str, Any] | None = None,
        *,
        event_id: str | None = None,
        task_index: int | None = None,
    ) -> State:
        """Write the state of this row under a tag, whole: what is not given is empty afterwards.

        Args:
            status: an int32; see ``Status``.
            payload: a JSON object.
            event_id: writing again with the current state's event id changes nothing.

        Raises: ReadOnlyManager, TaskMismatch, AttemptSuperseded, JobCancelled, JobNotFound, TypeError, ValueError.
        """
        row = self._own_row(task_index)
        status, text = check_status(status), encode_payload(payload)
        check_size(check_message(message), text, self._max_state_bytes)
        return self._write(Write.state(tag, row, status, message, text, event_id=event_id))

    def progress(
        self, tag: str, done: float, total: float, message: str | None = None, *, event_id: str | None = None
    ) -> State:
        """Write ``done`` of ``total`` as a percent status, 1 … 100, and as ``payload["progress"]``.

        The rest of the payload stays. Raises: as ``set_state``.
        """
        row = self._own_row(None)
        status = percent(done, total)
        check_size(check_message(message), None, self._max_state_bytes)
        progress = progress_json(done, total)
        return self._write(Write.progress(tag, row, status, progress, message, event_id=event_id))

    def begin(self, tag: str) -> int:
        """Take the next attempt of this row under a tag, whatever attempt was open; give its number.

        Later writes of this Manager under the tag are refused once another attempt was begun; a terminal
        status ends the attempt. Raises: BeginRefused – finished, or the job is closed; JobCancelled;
        ReadOnlyManager; JobNotFound.
        """
        row, tag = self._own_row(None), check_name("tag", tag)
        reply = self.store.begin(self.ref, Begin(tag=tag, task_index=row, takes_over=True))
        if reply.verdict is Verdict.CANCELLED:
            cancelled = current(self.store, self.ref).cancelled
            raise JobCancelled(self.job_id, cancelled.reason if cancelled else None)
        if reply.verdict is not Verdict.BEGUN:
            raise BeginRefused(self.job_id, tag, row, reply.verdict.value)
        self._attempts[tag] = reply.cell.attempt
        return reply.cell.attempt

    def get_state(self, tag: str | None = None, task_index: int | None = None) -> State:
        """Return one cell, or the lowest cell of a column, a row or the whole grid.

        A cell never written counts as NOT_STARTED. Raises: JobNotFound, TypeError; ValueError, also for a tag that is
        neither in the job's plan nor was ever written.
        """
        state = self.store.lowest(self.ref, self._scope(tag, task_index))
        if not state.version:
            self._check_known(tag)
        return state

    def list_states(self, tag: str | None = None, task_index: int | None = None) -> list[State]:
        """Return the written cells by (timestamp, tag, task_index). Raises: as ``get_state``."""
        states = list(self.store.list_states(self.ref, self._scope(tag, task_index)))
        if not states:
            self._check_known(tag)
        return states

    def summary(self, tag: str | None = None, indexes: bool = True) -> Summary:
        """Return counts of cells and sets of rows by class: not started, running, finished, failed, not run.

        Args:
            indexes: False leaves the sets None, at a cost that does not grow with the job.

        Raises: as ``get_state``.
        """
        job, columns = self.store.column_summaries(self.ref, check_optional("tag", tag), indexes=indexes)
        if not any(any(column.tally) for column in columns):
            self._check_known(tag)
        return aggregate.summarize(job, columns, indexes=indexes)

    def subscribe(
        self, tag: str | None = None, task_index: int | None = None, until_settled: bool = False
    ) -> Subscription:
        """Follow the written cells: what exists, oldest first, then changes as they come.

        Registered when it returns. Accepts any tag: it may be written later. Raises: JobNotFound, TypeError,
        ValueError, StoreError.
        """
        subscription = Subscription(self.store, self.ref, self._scope(tag, task_index), until_settled=until_settled)
        with self._lock:
            self._subscriptions.add(subscription)
        return subscription

    def synchronize(
        self, tag: str, status: int, timeout: float | None = None, *, fail_fast: bool = True
    ) -> list[State]:
        """Block until every row expected under ``tag`` has at least ``status``; give one state per row.

        Waiting costs nothing per row; the answer, and that of a timeout, takes some 350 bytes a row.

        Args:
            timeout: seconds; None waits for ever.
            fail_fast: raise as soon as a row is negative, rather than wait for it to recover.

        Raises: SynchronizeTimeout – with ``.states`` and ``.missing``; SynchronizeFailed; JobNotFound; TypeError;
            ValueError.
        """
        tag, status, timeout = check_name("tag", tag), check_status(status), check_timeout(timeout)
        return barrier.synchronize(self.store, self.ref, tag, status, timeout=timeout, fail_fast=fail_fast)

    def tombstone_job(self) -> bool:
        """Mark the job deleted: hidden from listings, still readable and writable.

        Returns: False when it was marked already. Raises: JobNotFound.
        """
        return tombstone_job(self.store, self.ref)

    def delete_job(self) -> None:
        """Delete the job and every state of it; later reads and writes raise JobNotFound. Raises: JobNotFound."""
        delete_job(self.store, self.ref)

    def close(self) -> None:
        """End this Manager's subscriptions; the store stays open."""
        with self._lock:
            open_ones = list(self._subscriptions)
        for subscription in open_ones:
            subscription.close()

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        row = "read-only" if self.task_index is None else f"task {self.task_index}"
        return f"<Manager of job {self.job_id!r}, {row} of {self.num_tasks}>"

    def _write(self, request: Write) -> State:
        check_name("tag", request.tag)
        check_name("event_id", request.event_id)
        request.attempt = self._attempts.get(request.tag)
        request.ends_attempt = request.attempt is not None and (request.status < 0 or request.status == FINISHED)
        return self._send(request)

    def _send(self, request: Write) -> State:
        cell = self.store.write(self.ref, request).cell
        return state_of(self.job_id, request.tag, request.task_index, cell)

    def _check_known(self, tag: str | None) -> None:
        """Check a tag that a read found no written cell of; a planned one costs nothing. Raises: ValueError."""
        if tag is None or self.plan is None or tag in self.plan.columns:
            return
        _, columns = self.store.column_summaries(self.ref, tag)
        if any(any(column.tally) for column in columns) or any(self.store.list_states(self.ref, Scope(tag))):
            return
        known = ", ".join(map(repr, self.tags[:_MOST_TAGS]))
        more = len(self.tags) - _MOST_TAGS
        raise ValueError(
            f"job {self.job_id!r} has no tag {tag!r}: it is not planned and was never written; the planned tags are "
            f"{known}{f' and {more} more' if more > 0 else ''}"
        )

    def _own_row(self, task_index: int | None) -> int:
        if task_index is not None:
            check_index(task_index, self.num_tasks)
        if self.task_index is None:
            raise ReadOnlyManager(self.job_id)
        if task_index is not None and task_index != self.task_index:
            raise TaskMismatch(self.job_id, self.task_index, task_index)
        return self.task_index

    def _scope(self, tag: str | None, task_index: int | None) -> Scope:
        return Scope(
            check_optional("tag", tag), None if task_index is None else check_index(task_index, self.num_tasks)
        )
