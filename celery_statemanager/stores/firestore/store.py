"""The Firestore store."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, get_args

from celery_statemanager import aggregate
from celery_statemanager.errors import ConfigurationError, StoreUnavailable
from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import Scope, State
from celery_statemanager.records import (
    Begin,
    BeginReply,
    Cell,
    Claimed,
    ClaimRequest,
    Column,
    JobKey,
    JobRecord,
    JobRef,
    Listed,
    OpenAttempt,
    OutboxState,
    Page,
    Reset,
    StoredCell,
    WorkerRecord,
    Write,
    WriteReply,
)
from celery_statemanager.stores import checked_timeout, recount
from celery_statemanager.stores.base import Watch
from celery_statemanager.stores.capabilities import FullStore, read_ahead
from celery_statemanager.stores.firestore import blocks, garbage, listing, migrating, overdue, row_values, workers
from celery_statemanager.stores.firestore.address import FirestoreAddress
from celery_statemanager.stores.firestore.claims import Claims
from celery_statemanager.stores.firestore.client import Connection
from celery_statemanager.stores.firestore.database import Database
from celery_statemanager.stores.firestore.documents import remember
from celery_statemanager.stores.firestore.jobs import JobDocuments
from celery_statemanager.stores.firestore.latches import Latches
from celery_statemanager.stores.firestore.names import DocumentNames
from celery_statemanager.stores.firestore.snapshot import MAX_CACHED_FLOORS, JobSnapshot, read_cell
from celery_statemanager.stores.firestore.step import StepRunner
from celery_statemanager.stores.firestore.timings import Timings
from celery_statemanager.stores.firestore.transports import ClientFactory, Transport, make_client
from celery_statemanager.stores.firestore.watch import FirestoreWatch
from celery_statemanager.stores.firestore.writer import Writer


class FirestoreStore(FullStore):
    """Stores jobs in a collection of a Firestore database, for any number of machines. Connects on first use.

    Args:
        timeout: the time limit of a call in seconds, for all its tries together.
        transport: "rest" for networks without gRPC; watches then poll.
        make_client: creates the client of a process on first use.
        timings: the periods of caches, checks and polls.
    """

    def __init__(
        self,
        address: FirestoreAddress,
        *,
        timeout: float = 5.0,
        transport: Transport = "grpc",
        make_client: ClientFactory = make_client,
        timings: Timings = Timings(),  # noqa: B008 - immutable
    ) -> None:
        if transport not in get_args(Transport):
            raise ConfigurationError(f"the transport of a Firestore store must be 'grpc' or 'rest', not {transport!r}")
        self._connection = Connection(address.checked(), checked_timeout(timeout), transport, make_client)
        self._names = DocumentNames(address)
        self._database = Database(self._connection, self._names, timings)
        self._jobs = JobDocuments(self._database)
        self._latches = Latches(self._database, self._jobs)
        self._claims = Claims(self._database, self._jobs, self._latches)
        self._steps = StepRunner(self._database, self._jobs, self._claims.outboxes)
        self._writer = Writer(self._database, self._jobs, self._steps, self._latches, self._claims)
        self._floors: dict[JobRef, dict[str, int]] = {}
        weakref.finalize(self, Connection.close, self._connection)

    @classmethod
    def from_url(cls, url: str, *, timeout: float, **options: Any) -> FirestoreStore:
        return cls(FirestoreAddress.parse(url), timeout=timeout, **options)

    def create_job(self, job: JobRecord) -> JobRecord:
        return _copy(self._jobs.create(job))

    def get_job(self, key: JobKey) -> JobRecord:
        return _copy(self._jobs.get(key, self._database.deadline()).job)

    def update_job(self, job: JobRecord) -> tuple[str, ...] | None:
        deadline = self._database.deadline()
        current = self._jobs.update(job, deadline)
        return None if current is None else self._latches.decide(job.ref, current, deadline)

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

    def newest_jobs(self, cursor: str | None = None, limit: int = 100) -> list[Listed]:
        return listing.newest_jobs(self._database, cursor, limit)

    def list_runs(self, job_id: str, limit: int = 10) -> list[str | None]:
        return listing.runs(self._database, job_id, limit)

    def delete_job(self, job: JobRecord, *, if_idle: bool = False, purge: int = 0) -> bool:
        notes = garbage.delete(self._database, self._jobs, job, if_idle=if_idle)
        if notes is None:
            return False
        self._jobs.forget(job.key)
        self._steps.forget(job.ref)
        self._floors.pop(job.ref, None)
        if purge:
            with suppress(StoreUnavailable):  # the job is deleted, and a later purge removes its documents
                garbage.purge_notes(self._database, notes, purge)
        return True

    def purge(self, limit: int = 1_000) -> int:
        return garbage.purge(self._database, limit)

    def write(self, ref: JobRef, write: Write) -> WriteReply:
        return self._writer.write(ref, write)

    def begin(self, ref: JobRef, begin: Begin) -> BeginReply:
        return self._writer.begin(ref, begin)

    def get_cell(self, ref: JobRef, tag: str, task_index: int) -> Cell | None:
        job, name = self._names.job(ref.key), self._names.cell(ref, tag, task_index)
        batch = self._database.get([job, name], self._database.deadline())
        current = self._jobs.checked(ref, self._jobs.decode(ref.key, batch.documents.get(job)))
        return read_cell(current.job, batch, name)

    def lowest(self, ref: JobRef, scope: Scope) -> State:
        if scope.tag is not None and scope.task_index is not None:
            cell = self.get_cell(ref, scope.tag, scope.task_index)
            document = self._jobs.recent(ref) or self._jobs.current(ref, self._database.deadline())
            return aggregate.visible_state(document.job, scope.tag, scope.task_index, cell)
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
        states = [aggregate.visible_state(job, *entry) for entry in listing.cells(self._database, job, scope, at)]
        return iter(sorted(states, key=lambda state: (state.timestamp, state.tag, state.task_index)))

    def watch(self, ref: JobRef, scope: Scope, since: str | None = None) -> Watch:
        return FirestoreWatch(self._database, self._jobs, ref, scope, since)

    def adopt_job(self, ref: JobRef, incarnation: str) -> JobRecord:
        return _copy(migrating.adopt(self._database, self._jobs, ref, incarnation))

    def outdated_cells(self, ref: JobRef, below: int) -> Iterator[StoredCell]:
        job, _ = self._read(ref)
        return migrating.outdated(self._database, job, below)

    def rewrite_cells(self, ref: JobRef, cells: Sequence[StoredCell]) -> int:
        job, _ = self._read(ref)
        return migrating.rewrite(self._database, job, cells)

    def add_block(self, ref: JobRef, first: int, data: bytes, lease: float) -> None:
        blocks.add(self._database, ref, first, data, lease)

    def get_block(self, ref: JobRef, row: int) -> tuple[int, bytes] | None:
        return blocks.get(self._database, ref, row)

    def get_value(self, ref: JobRef, row: int) -> str | None:
        return row_values.get_value(self._database, ref, row)

    def list_values(self, ref: JobRef, rows: IndexSet) -> Iterator[tuple[int, str]]:
        return read_ahead(row_values.pages_of_values(self._database, self._jobs, ref, rows))

    def drop_draft(self, ref: JobRef) -> None:
        blocks.drop(self._database, ref)

    def drop_expired_drafts(self) -> int:
        return blocks.drop_expired(self._database)

    def get_outbox(self, ref: JobRef) -> OutboxState:
        return self._claims.outboxes.read_all(ref)

    def claim(self, ref: JobRef, request: ClaimRequest) -> Claimed:
        return self._claims.claim(ref, request)

    def reset_row(self, ref: JobRef, reset: Reset) -> bool:
        return self._writer.reset_row(ref, reset)

    def put_worker(self, worker_id: str, body: str, lease: float) -> None:
        workers.put(self._database, worker_id, body, lease)

    def try_acquire(self, name: str, holder: str, seconds: float) -> bool:
        return workers.try_acquire(self._database, name, holder, seconds)

    def get_worker(self, worker_id: str) -> WorkerRecord | None:
        return workers.get(self._database, worker_id)

    def list_workers(self) -> Iterator[WorkerRecord]:
        return workers.records(self._database)

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
        """Return a job and the time as of which it was read, for further reads as of the same time."""
        name = self._names.job(ref.key)
        batch = self._database.get([name], self._database.deadline())
        current = self._jobs.checked(ref, self._jobs.decode(ref.key, batch.documents.get(name)))
        return _copy(current.job), batch.read_time

    def _snapshot(self, job: JobRecord, at: Any) -> JobSnapshot:
        floors = self._floors.get(job.ref, {})
        remember(self._floors, job.ref, floors, MAX_CACHED_FLOORS)
        return JobSnapshot(self._database, job, at, floors, self._database.deadline())

    def _cells(self, job: JobRecord, scope: Scope, at: Any) -> recount.Cells:
        return {(tag, row): cell for tag, row, cell in listing.cells(self._database, job, scope, at)}


def _copy(job: JobRecord) -> JobRecord:
    """Return a copy that the caller may change."""
    return replace(job, latches=dict(job.latches))
