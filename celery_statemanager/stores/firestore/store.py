"""States in Firestore."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, get_args

from celery_statemanager import aggregate
from celery_statemanager.errors import ConfigurationError, JobNotFound, StoreUnavailable
from celery_statemanager.models import Scope, State
from celery_statemanager.records import (
    Begin,
    BeginReply,
    Cell,
    Column,
    JobKey,
    JobRecord,
    JobRef,
    OpenAttempt,
    Page,
    StoredCell,
    WorkerRecord,
    Write,
    WriteReply,
)
from celery_statemanager.stores import checked_timeout, recount
from celery_statemanager.stores.base import Watch
from celery_statemanager.stores.capabilities import FullStore
from celery_statemanager.stores.firestore import garbage, listing, migrating, overdue, workers
from celery_statemanager.stores.firestore.address import Address
from celery_statemanager.stores.firestore.client import Connection
from celery_statemanager.stores.firestore.database import Database
from celery_statemanager.stores.firestore.documents import remember
from celery_statemanager.stores.firestore.errors import PreconditionFailed, Transient
from celery_statemanager.stores.firestore.jobs import Jobs, new_operation
from celery_statemanager.stores.firestore.latches import Latches
from celery_statemanager.stores.firestore.names import Names
from celery_statemanager.stores.firestore.snapshot import Snapshot, read_cell
from celery_statemanager.stores.firestore.step import Steps
from celery_statemanager.stores.firestore.timings import Timings
from celery_statemanager.stores.firestore.transports import ClientFactory, Transport, make_client
from celery_statemanager.stores.firestore.watch import FirestoreWatch
from celery_statemanager.stores.firestore.writer import Writer

MOST_FLOORS = 1_000


class FirestoreStore(FullStore):
    """States in a collection of a Firestore database, shared by any number of machines. Connects on first use.

    Args:
        timeout: seconds after which a call gives up, all its tries together.
        transport: "rest" where gRPC does not get through; watches then poll.
        make_client: makes the client of a process when it first needs one.
        timings: how often it does what is billed.
    """

    def __init__(
        self,
        address: Address,
        *,
        timeout: float = 5.0,
        transport: Transport = "grpc",
        make_client: ClientFactory = make_client,
        timings: Timings = Timings(),  # noqa: B008 - immutable
    ) -> None:
        if transport not in get_args(Transport):
            raise ConfigurationError(f"Firestore's transport is 'grpc' or 'rest', not {transport!r}")
        self._connection = Connection(address.checked(), checked_timeout(timeout), transport, make_client)
        self._names = Names(address)
        self._database = Database(self._connection, self._names, timings)
        self._jobs = Jobs(self._database)
        self._steps = Steps(self._database, self._jobs)
        self._latches = Latches(self._database, self._jobs)
        self._writer = Writer(self._database, self._jobs, self._steps, self._latches)
        self._floors: dict[JobRef, dict[str, int]] = {}
        weakref.finalize(self, Connection.close, self._connection)

    @classmethod
    def from_url(cls, url: str, *, timeout: float, **options: Any) -> FirestoreStore:
        return cls(Address.parse(url), timeout=timeout, **options)

    def create_job(self, job: JobRecord) -> JobRecord:
        return _copy(self._jobs.create(job))

    def get_job(self, key: JobKey) -> JobRecord:
        return _copy(self._jobs.get(key, self._database.deadline()).job)

    def update_job(self, job: JobRecord) -> tuple[str, ...] | None:
        deadline, operation = self._database.deadline(), new_operation()
        while True:
            known = self._jobs.current(job.ref, deadline)
            if operation not in known.operations:
                if job.revision != known.job.revision:
                    return None
                try:
                    known = self._jobs.replace(known, _changed(known.job, job), operation, deadline)
                except (PreconditionFailed, Transient) as error:
                    deadline.pause(error)
                    continue
            return self._latches.decide(job.ref, known, deadline)

    def list_jobs(
        self,
        cursor: str | None = None,
        limit: int = 100,
        *,
        due: bool = False,
        tombstoned: bool = False,
        idle_before: int | None = None,
    ) -> Page:
        if due:
            parts = self._database, self._jobs, self._latches
            return overdue.due_page(*parts, cursor, limit, tombstoned=tombstoned, idle_before=idle_before)
        return listing.page(self._database, cursor, limit, due=False, tombstoned=tombstoned, idle_before=idle_before)

    def list_runs(self, job_id: str, limit: int = 10) -> list[str | None]:
        return listing.runs(self._database, job_id, limit)

    def delete_job(self, job: JobRecord, *, if_idle: bool = False, purge: int = 0) -> bool:
        deadline = self._database.deadline()
        uncertain = False
        while True:
            try:
                known = self._jobs.current(job.ref, deadline)
            except JobNotFound:
                if uncertain:
                    return True
                raise
            moved = (known.job.revision, known.job.last_activity) != (job.revision, job.last_activity)
            if if_idle and moved:
                return False
            writes = garbage.discard(self._database, known)
            try:
                answer = self._database.commit(writes, deadline)
            except (PreconditionFailed, Transient) as error:
                uncertain = uncertain or isinstance(error, Transient)
                deadline.pause(error)
                continue
            self._forget(job.ref)
            if purge:
                with suppress(StoreUnavailable):  # the job is deleted; what is left of it is purged later
                    garbage.purge_discarded(self._database, writes, answer.write_results, purge)
            return True

    def purge(self, limit: int = 1_000) -> int:
        return garbage.purge(self._database, limit)

    def write(self, ref: JobRef, write: Write) -> WriteReply:
        return self._writer.write(ref, write)

    def begin(self, ref: JobRef, begin: Begin) -> BeginReply:
        return self._writer.begin(ref, begin)

    def get_cell(self, ref: JobRef, tag: str, task_index: int) -> Cell | None:
        job, name = self._names.job(ref.key), self._names.cell(ref, tag, task_index)
        got = self._database.get([job, name], self._database.deadline())
        known = self._jobs.checked(ref, self._jobs.read(ref.key, got.documents.get(job)))
        return read_cell(known.job, got, name)

    def lowest(self, ref: JobRef, scope: Scope) -> State:
        if scope.tag is not None and scope.task_index is not None:
            cell = self.get_cell(ref, scope.tag, scope.task_index)
            known = self._jobs.recent(ref) or self._jobs.current(ref, self._database.deadline())
            return aggregate.visible_state(known.job, scope.tag, scope.task_index, cell)
        job, at = self._read(ref)
        if not job.schema:
            return recount.lowest(job, self._cells(job, Scope(), at), scope)
        return self._snapshot(job, at).lowest(scope)

    def column_summaries(
        self, ref: JobRef, tag: str | None = None, *, indexes: bool = False
    ) -> tuple[JobRecord, list[Column]]:
        job, at = self._read(ref)
        if not indexes and job.schema:
            return job, self._snapshot(job, at).column_summaries(tag)
        return job, recount.column_summaries(job, self._cells(job, Scope(tag), at), tag)

    def list_states(self, ref: JobRef, scope: Scope) -> Iterator[State]:
        job, at = self._read(ref)
        states = [aggregate.visible_state(job, *found) for found in listing.cells(self._database, job, scope, at)]
        return iter(sorted(states, key=lambda state: (state.timestamp, state.tag, state.task_index)))

    def watch(self, ref: JobRef, scope: Scope) -> Watch:
        return FirestoreWatch(self._database, self._jobs, ref, scope)

    def adopt_job(self, ref: JobRef, incarnation: str) -> JobRecord:
        return _copy(migrating.adopt(self._database, self._jobs, ref, incarnation))

    def outdated_cells(self, ref: JobRef, below: int) -> Iterator[StoredCell]:
        job, _ = self._read(ref)
        return migrating.outdated(self._database, job, below)

    def rewrite_cells(self, ref: JobRef, cells: Sequence[StoredCell]) -> int:
        job, _ = self._read(ref)
        return migrating.rewrite(self._database, job, cells)

    def put_worker(self, worker_id: str, body: str, lease: float) -> None:
        workers.put(self._database, worker_id, body, lease)

    def try_acquire(self, name: str, holder: str, seconds: float) -> bool:
        return workers.try_acquire(self._database, name, holder, seconds)

    def get_worker(self, worker_id: str) -> WorkerRecord | None:
        return workers.one(self._database, worker_id)

    def list_workers(self) -> Iterator[WorkerRecord]:
        return workers.every(self._database)

    def drop_worker(self, worker_id: str) -> None:
        workers.drop(self._database, worker_id)

    def list_open_attempts(self) -> Iterator[OpenAttempt]:
        return listing.open_attempts(self._database)

    def now(self) -> int:
        return self._database.now()

    def expect_forks(self) -> None:
        self._connection.expect_forks()

    def close(self) -> None:
        self._connection.close()

    def __repr__(self) -> str:
        return f"<FirestoreStore {self._connection.address}>"

    def _read(self, ref: JobRef) -> tuple[JobRecord, Any]:
        """Read a job and the moment of it, at which the rest is read too."""
        name = self._names.job(ref.key)
        got = self._database.get([name], self._database.deadline())
        known = self._jobs.checked(ref, self._jobs.read(ref.key, got.documents.get(name)))
        return _copy(known.job), got.at

    def _snapshot(self, job: JobRecord, at: Any) -> Snapshot:
        floors = self._floors.get(job.ref, {})
        remember(self._floors, job.ref, floors, MOST_FLOORS)
        return Snapshot(self._database, job, at, floors, self._database.deadline())

    def _cells(self, job: JobRecord, scope: Scope, at: Any) -> recount.Cells:
        return {(tag, row): cell for tag, row, cell in listing.cells(self._database, job, scope, at)}

    def _forget(self, ref: JobRef) -> None:
        self._jobs.forget(ref.key)
        self._steps.forget(ref)
        self._floors.pop(ref, None)


def _changed(kept: JobRecord, wanted: JobRecord) -> JobRecord:
    """Give the job with what may change of it."""
    return replace(
        kept,
        latches=dict(wanted.latches),
        cancelled=wanted.cancelled,
        submission=wanted.submission,
        tombstoned_at=wanted.tombstoned_at,
        schema_version=wanted.schema_version,
    )


def _copy(job: JobRecord) -> JobRecord:
    """Give a record that its taker may alter."""
    return replace(job, latches=dict(job.latches))
