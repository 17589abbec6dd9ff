"""Writes and begins: the step, what must be looked at after it, and the latches it lets fall."""

from __future__ import annotations

from dataclasses import replace

from celery_statemanager.errors import JobCancelled, StoreError
from celery_statemanager.models import Status
from celery_statemanager.records import Begin, BeginReply, Cell, JobRecord, JobRef, Verdict, Write, WriteReply
from celery_statemanager.stores import steps
from celery_statemanager.stores.firestore import requests
from celery_statemanager.stores.firestore.database import Database
from celery_statemanager.stores.firestore.jobs import Jobs
from celery_statemanager.stores.firestore.latches import Latches
from celery_statemanager.stores.firestore.step import Steps
from celery_statemanager.stores.firestore.timings import in_microseconds
from celery_statemanager.stores.firestore.view import Done


class Writer:
    """Writes cells.

    Whoever cancels writes the job and then counts what is open; whoever begins writes the cell and then looks at the
    job: one of them sees the other.
    """

    def __init__(self, database: Database, jobs: Jobs, steps: Steps, latches: Latches) -> None:
        self._database = database
        self._jobs = jobs
        self._steps = steps
        self._latches = latches
        self._activity = Activity(database)

    def write(self, ref: JobRef, write: Write) -> WriteReply:
        """Write a cell. Raises: what ``Store.write`` raises."""
        reply, done = self._write(ref, write)
        if done is not None and write.begin is not None and not write.ends_attempt:
            ended = self._ended_meanwhile(ref, done)
            if ended is not None:
                self._take_back(ref, write.begin, reply.cell, ended)
                raise JobCancelled(ended.job_id, ended.cancelled.reason if ended.cancelled else None)
        return reply

    def begin(self, ref: JobRef, begin: Begin) -> BeginReply:
        """Take an attempt. Raises: what ``Store.begin`` raises."""
        place, deadline = (begin.tag, begin.task_index), self._database.deadline()
        reply, done = self._steps.run(ref, place, lambda tx: steps.begin(tx, begin), deadline, begins=True)
        ended = None if done is None else self._ended_meanwhile(ref, done)
        if ended is not None and reply.verdict is Verdict.BEGUN:
            return self._take_back(ref, begin, reply.cell, ended)
        reply.decided = self._latches.after(ref, place, reply.cell, done)
        self._activity.note(ref, done)
        return reply

    def _write(self, ref: JobRef, write: Write) -> tuple[WriteReply, Done | None]:
        place, deadline = (write.tag, write.task_index), self._database.deadline()
        begins = write.begin is not None
        reply, done = self._steps.run(ref, place, lambda tx: steps.write(tx, write), deadline, begins=begins)
        reply.decided = self._latches.after(ref, place, reply.cell, done)
        self._activity.note(ref, done)
        return reply, done

    def _ended_meanwhile(self, ref: JobRef, done: Done) -> JobRecord | None:
        """Give the job if it takes no begins, though it did when the step was computed. Raises: JobNotFound."""
        job = self._jobs.current(ref, self._database.deadline()).job
        before = done.job.job
        ended = (job.cancelled and not before.cancelled) or (job.settled and not before.settled)
        return job if ended and all(row >= 0 for _, row in done.puts) else None

    def _take_back(self, ref: JobRef, begin: Begin, cell: Cell, job: JobRecord) -> BeginReply:
        """End an attempt that began when its job had been cancelled; nothing was run."""
        end = Write(
            tag=begin.tag,
            task_index=begin.task_index,
            status=int(Status.CANCELLED),
            event_id=f"{begin.event_id}-taken-back",
            message=job.cancelled.reason if job.cancelled else None,
            attempt=cell.attempt,
            keep_payload=True,
            ends_attempt=True,
        )
        reply, _ = self._write(ref, end)
        return BeginReply(Verdict.CANCELLED if job.cancelled else Verdict.CLOSED, reply.cell, reply.decided)


class Activity:
    """Tells."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def note(self, ref: JobRef, done: Done | None) -> None:
        """Take note of a write that was done; trouble is left to the next one."""
        if done is None or done.job.foreign:
            return
        job, now = done.job.job, self._database.now()
        hidden = job.tombstoned_at is not None and job.last_activity <= job.tombstoned_at
        every = in_microseconds(self._database.timings.activity_every)
        if now - job.last_activity < every and not hidden:
            return
        done.job.job = replace(job, last_activity=now)
        name = self._database.names.job(ref.key)
        try:
            self._database.commit([requests.touch_time(name, "lastActivity")], self._database.deadline())
        except StoreError:
            return
