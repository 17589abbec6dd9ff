"""The core API: one job, and optionally one row of it, over any store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from celery_statemanager import attempts, completion
from celery_statemanager.codec import progress_json, state_of
from celery_statemanager.errors import BeginRefused, JobCancelled, ReadOnlyManager, TaskMismatch
from celery_statemanager.limits import (
    MAX_STATE_BYTES,
    check_index,
    check_message,
    check_name,
    check_number,
    check_size,
    check_status,
    encode_payload,
    percent,
)
from celery_statemanager.models import FINISHED, State
from celery_statemanager.plan import PlanSpec
from celery_statemanager.queries import JobQueries
from celery_statemanager.records import Begin, JobRecord, Verdict, Write, job_key, new_job
from celery_statemanager.retention import current, delete_job, find_job, tombstone_job
from celery_statemanager.stores.base import Store


class Manager(JobQueries):
    """Read a job and write one row of it. A Manager is bound to one incarnation of the job.

    Thread-safe; may be created before a fork and used after it. Obtain one from ``create`` or ``open``.
    """

    def __init__(
        self, store: Store, job: JobRecord, task_index: int | None = None, *, max_state_bytes: int = MAX_STATE_BYTES
    ) -> None:
        super().__init__(store, job)
        self.task_index = None if task_index is None else check_index(task_index, job.num_tasks)
        self._max_state_bytes = max_state_bytes
        self._attempts: dict[str, int] = {}

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
            tags: the plan: the tags of every row in the order in which they run, or a mapping from a tag to its rows.
            run_token: distinguishes runs of the same ``job_id``.

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
        """Replace the state of this row under a tag. Arguments that are left out are empty afterwards.

        Args:
            status: an int32; see ``Status``.
            payload: a JSON object.
            event_id: a write with the event id of the current state changes nothing.

        Raises: ReadOnlyManager, TaskMismatch, AttemptSuperseded, JobCancelled, JobNotFound, TypeError, ValueError.
        """
        row = self._own_row(task_index)
        status, message, text = check_status(status), check_message(message), encode_payload(payload)
        check_size(message, text, self._max_state_bytes)
        return self._write(Write.state(tag, row, status, message, text, event_id=event_id))

    def progress(
        self, tag: str, done: float, total: float, message: str | None = None, *, event_id: str | None = None
    ) -> State:
        """Write ``done`` of ``total`` as a percent status, 1 … 100, and as ``payload["progress"]``.

        The rest of the payload stays. The numbers may be of any type, such as one of NumPy. Raises: as ``set_state``.
        """
        row = self._own_row(None)
        done, total = check_number("done", done), check_number("total", total)
        status = percent(done, total)
        message = check_message(message)
        check_size(message, None, self._max_state_bytes)
        progress = progress_json(done, total)
        return self._write(Write.progress(tag, row, status, progress, message, event_id=event_id))

    def begin(self, tag: str) -> int:
        """Begin the next attempt of this row under a tag, even if an attempt is open. Return its number.

        Once another attempt has begun, later writes of this Manager under the tag are refused. A terminal status ends
        the attempt.

        Raises: BeginRefused – finished, or the job is closed; JobCancelled; ReadOnlyManager; JobNotFound.
        """
        row, tag = self._own_row(None), check_name("tag", tag)
        reply = completion.begin(self.store, self.ref, Begin(tag=tag, task_index=row, takes_over=True))
        if reply.verdict is Verdict.CANCELLED:
            cancelled = current(self.store, self.ref).cancelled
            raise JobCancelled(self.job_id, cancelled.reason if cancelled else None)
        if reply.verdict is not Verdict.BEGUN:
            raise BeginRefused(self.job_id, tag, row, reply.verdict.value)
        self._attempts[tag] = reply.cell.attempt
        return reply.cell.attempt

    def tombstone_job(self) -> bool:
        """Mark the job as deleted. It is hidden from listings but stays readable and writable.

        Returns: False if it was already marked. Raises: JobNotFound.
        """
        return tombstone_job(self.store, self.ref)

    def delete_job(self) -> None:
        """Delete the job and all its states. Later reads and writes raise JobNotFound. Raises: JobNotFound."""
        delete_job(self.store, self.ref)

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
        anew = Begin(tag=request.tag, task_index=request.task_index, takes_over=True)
        cell = attempts.write(self.store, self.ref, request, anew).cell
        return state_of(self.job_id, request.tag, request.task_index, cell)

    def _own_row(self, task_index: int | None) -> int:
        if task_index is not None:
            check_index(task_index, self.num_tasks)
        if self.task_index is None:
            raise ReadOnlyManager(self.job_id)
        if task_index is not None and task_index != self.task_index:
            raise TaskMismatch(self.job_id, self.task_index, task_index)
        return self.task_index
