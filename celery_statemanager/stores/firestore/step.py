"""One write or begin: computed from cached documents and applied by a commit that requires them to be unchanged.

A normal write has its cell in the cache and reads nothing. A step that ends without a commit, with an error or as a
repetition, is valid only if its documents were read for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

from celery_statemanager.errors import StateManagerError, StoreError
from celery_statemanager.records import BeginReply, JobRef, WriteReply
from celery_statemanager.stores.firestore import requests, tallies
from celery_statemanager.stores.firestore.database import Database
from celery_statemanager.stores.firestore.documents import (
    MAX_OPERATIONS,
    CellDocument,
    JobDocument,
    cell_fields,
    remember,
)
from celery_statemanager.stores.firestore.errors import CallDeadline, PreconditionFailed, Transient
from celery_statemanager.stores.firestore.jobs import JobDocuments, new_operation
from celery_statemanager.stores.firestore.outbox import Outboxes, next_claim_write, returned_write
from celery_statemanager.stores.firestore.values import Moment, microseconds
from celery_statemanager.stores.firestore.view import (
    NOW,
    StepDocuments,
    StepResult,
    StepTransaction,
    cell_document,
    set_time,
)
from celery_statemanager.stores.transactional import CellKey

Reply = TypeVar("Reply", WriteReply, BeginReply, bool)

MAX_CACHED_CELLS = 2_000
"""Far more cells than a process works on at once. Each may take 64 KiB; one that is evicted costs a read."""


class StepRunner:
    """Runs atomic steps and caches the cells that this process writes."""

    def __init__(self, database: Database, jobs: JobDocuments, outboxes: Outboxes) -> None:
        self._database = database
        self._jobs = jobs
        self._outboxes = outboxes
        self._cells: dict[tuple[JobRef, str, int], CellDocument] = {}

    def run(
        self,
        ref: JobRef,
        key: CellKey,
        work: Callable[[StepTransaction], Reply],
        deadline: CallDeadline,
        *,
        begins: bool = False,
        resets: bool = False,
    ) -> tuple[Reply, StepResult | None]:
        """Run a step and return its reply and its changes, or None if it changed nothing.

        Args:
            begins: whether the step takes an attempt, which may unblock later stages.
            resets: whether the step resets the row from this cell on.
        """
        operation = new_operation()
        documents: StepDocuments | None
        documents = self._read_stages(ref, key, deadline) if resets else self._from_cache(ref, key)
        documents = documents or self._read(ref, [key], deadline)
        last: tuple[StepTransaction, Reply] | None = None
        while True:
            if last is not None and operation in documents.cells[key].operations:
                return self._recovered(ref, documents, *last)
            read = partial(self._read_cell, ref, documents.job, deadline)
            tx = StepTransaction(documents, key, read, begins, resets, self._outboxes.returns(ref))
            try:
                reply = work(tx)
            except StoreError:
                raise
            except StateManagerError:
                if documents.fresh:
                    raise
            else:
                if not tx.puts and documents.fresh:
                    return reply, None
                job_is_current = documents.fresh or tx.requires_job
                if tx.puts and (job_is_current or not tx.returns_row):  # otherwise it may no longer be paused
                    last = tx, reply
                    result = self._try_commit(ref, tx, operation, deadline)
                    if result is not None:
                        return reply, result
            documents = self._read(ref, documents.cells, deadline)

    def forget(self, ref: JobRef) -> None:
        """Remove the cells of a job from the cache."""
        for key in [key for key in list(self._cells) if key[0] == ref]:
            self._cells.pop(key, None)

    def _from_cache(self, ref: JobRef, key: CellKey) -> StepDocuments | None:
        job = self._jobs.recent(ref)
        if job is None:
            return None
        return StepDocuments(job, {key: self._cells.get((ref, *key)) or CellDocument()}, fresh=False)

    def _read(
        self, ref: JobRef, keys: Iterable[CellKey], deadline: CallDeadline, job: JobDocument | None = None
    ) -> StepDocuments:
        """Read cells and, unless it is given, the job."""
        names, fresh = self._database.names, job is None
        cells = {names.cell(ref, *key): key for key in keys}
        job_name = names.job(ref.key)
        batch = self._database.get([job_name, *cells] if fresh else cells, deadline)
        if job is None:
            job = self._jobs.checked(ref, self._jobs.decode(ref.key, batch.documents.get(job_name)))
        return StepDocuments(job, {key: cell_document(job.job, batch, name) for name, key in cells.items()}, fresh)

    def _read_stages(self, ref: JobRef, key: CellKey, deadline: CallDeadline) -> StepDocuments:
        """Read a cell and the later stages of its row, but not the job, which is large: it names all rows to reset."""
        job = self._jobs.recent(ref) or self._jobs.current(ref, deadline)
        tag, row = key
        later = job.job.plan.after(tag, row) if job.job.plan else ()
        return self._read(ref, [(each, row) for each in (tag, *later)], deadline, job)

    def _read_cell(self, ref: JobRef, job: JobDocument, deadline: CallDeadline, key: CellKey) -> CellDocument:
        name = self._database.names.cell(ref, *key)
        return cell_document(job.job, self._database.get([name], deadline), name)

    def _try_commit(
        self, ref: JobRef, tx: StepTransaction, operation: str, deadline: CallDeadline
    ) -> StepResult | None:
        """Commit a step; return None if a precondition failed or the answer was lost."""
        try:
            return self._commit(ref, tx, operation, deadline)
        except PreconditionFailed as error:
            if tx.documents.fresh:  # another process writes the same cell
                deadline.pause(error)
        except Transient as error:
            deadline.pause(error)
        return None

    def _commit(self, ref: JobRef, tx: StepTransaction, operation: str, deadline: CallDeadline) -> StepResult:
        operations: dict[CellKey, list[str]]
        operations = {key: [*tx.documents.cells[key].operations, operation][-MAX_OPERATIONS:] for key in tx.puts}
        writes = [self._cell_write(ref, tx, key, operations[key]) for key in tx.puts]
        response = self._database.commit([*writes, *self._other_writes(ref, tx)], deadline)
        now = int(microseconds(response.write_results[0].transform_results[0].timestamp_value))
        for key, result in zip(tx.puts, response.write_results):
            cell = tx.puts[key][1]
            set_time(cell, now)
            self._remember(ref, key, CellDocument(cell, result.update_time, operations[key]))
        if tx.changes_job:
            tx.documents.job.cached_at = 0.0  # the commit changed the update time of the job
        if tx.returns_row:
            self._outboxes.note_returned(ref)
        return StepResult(tx.documents.job, tx.puts)

    def _cell_write(self, ref: JobRef, tx: StepTransaction, key: CellKey, operations: list[str]) -> Any:
        new = tx.puts[key][1]
        collection = self._database.names.address.collection
        fields = cell_fields(tx.job, *key, new, collection=collection)
        fields["operations"] = operations
        times = ["timestamp"]
        if new.began_at == NOW:
            times.append("beganAt")
        else:
            fields["beganAt"] = Moment(new.began_at) if new.began_at else None
        update_time = tx.documents.cells[key].update_time
        return requests.put(self._database.names.cell(ref, *key), fields, update_time, times)

    def _other_writes(self, ref: JobRef, tx: StepTransaction) -> list[Any]:
        """Return the writes of the tally shards and of the row, and those that make a concurrent change fail."""
        names, job, cells = self._database.names, tx.job, tx.documents.cells
        job_update_time = tx.documents.job.update_time
        if tx.documents.job.foreign:  # a migration writes this document first, which fences later writes of cells
            return [requests.touch(names.job(ref.key), {}, job_update_time)]
        puts = ((key, cells[key].as_counted(), new) for key, (_, new) in tx.puts.items())
        writes = [
            requests.add(names.tally(ref, tag, shard), tallies.fields_of(job, tag), change._asdict())
            for (tag, shard), change in tallies.changes(job, puts).items()
        ]
        if tx.requires_job:
            changed = {"reopened": new_operation()} if tx.changes_job else {}
            writes.append(requests.touch(names.job(ref.key), changed, job_update_time))
        return [*writes, *self._row_writes(ref, tx)]

    def _row_writes(self, ref: JobRef, tx: StepTransaction) -> Iterator[Any]:
        """Yield the writes of what a row keeps, and of the row in the outbox."""
        names, (_, row) = self._database.names, tx.primary
        for each, value in tx.values.items():
            name = names.value(ref, each)
            yield requests.delete(name) if value is None else requests.overwrite(name, {"text": value})
        state = tx.stored_outbox
        if state is None:
            return
        for publisher, claim in state.claims.items():
            yield next_claim_write(names, ref, publisher, claim, tx.puts[tx.primary][1].event_id)
        if tx.returns_row or tx.assumes_returned:
            yield returned_write(names, ref, row, state.returned)
        if tx.returns_row and not self._outboxes.returns(ref):
            yield requests.touch(names.outbox(ref), {"returns": True})

    def _remember(self, ref: JobRef, key: CellKey, document: CellDocument) -> None:
        remember(self._cells, (ref, *key), document, MAX_CACHED_CELLS)

    def _recovered(
        self, ref: JobRef, documents: StepDocuments, tx: StepTransaction, reply: Reply
    ) -> tuple[Reply, StepResult]:
        """Return the reply of a step that was committed although its answer was lost."""
        primary = documents.cells[tx.primary]
        self._remember(ref, tx.primary, primary)
        now = primary.cell.timestamp if primary.cell else 0
        for _, new in tx.puts.values():
            set_time(new, now)
        return reply, StepResult(documents.job, tx.puts)
