"""One write or begin: computed here from what is known of its documents, done by one commit that holds only if it is.

The normal write knows its cell from its own last write and reads nothing. Whatever does not end in a commit, an error
or a repetition, is believed only after the documents were read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from celery_statemanager.errors import StateManagerError, StoreError
from celery_statemanager.records import BeginReply, JobRef, WriteReply
from celery_statemanager.stores.firestore import requests, tallies
from celery_statemanager.stores.firestore.database import Database
from celery_statemanager.stores.firestore.documents import REMEMBERED, CachedJob, KnownJob, cell_fields, remember
from celery_statemanager.stores.firestore.errors import Deadline, PreconditionFailed, Transient
from celery_statemanager.stores.firestore.jobs import Jobs, new_operation
from celery_statemanager.stores.firestore.values import Moment, microseconds
from celery_statemanager.stores.firestore.view import NOW, Done, Place, StepTransaction, View, known_of, set_time

Reply = TypeVar("Reply", WriteReply, BeginReply)

MOST_CELLS = 2_000
"""Far more than a process is at work on at once; each may hold 64 KiB. One that is forgotten costs a read."""


class Steps:
    """Runs atomic steps. Remembers the cells that this process wrote."""

    def __init__(self, database: Database, jobs: Jobs) -> None:
        self._database = database
        self._jobs = jobs
        self._cells: dict[tuple[JobRef, str, int], CachedJob] = {}

    def run(
        self,
        ref: JobRef,
        place: Place,
        work: Callable[[StepTransaction], Reply],
        deadline: Deadline,
        *,
        begins: bool,
    ) -> tuple[Reply, Done | None]:
        """Do a step; with what it changed, or None if nothing.

        Args:
            begins: it takes an attempt, which may free later stages.
        """
        operation = new_operation()
        read = (lambda place: self._read_cell(ref, view.job, place, deadline)) if begins else None
        view: View = self._remembered(ref, place) or self._read(ref, [place], deadline)
        last: tuple[StepTransaction, Reply] | None = None
        while True:
            if last is not None and operation in view.cells[place].operations:
                return self._recovered(ref, view, *last)
            tx = StepTransaction(view, place, read)
            try:
                reply = work(tx)
            except StoreError:
                raise
            except StateManagerError:
                if view.fresh:
                    raise
            else:
                if not tx.puts and view.fresh:
                    return reply, None
                if tx.puts:
                    last = tx, reply
                    done = self._try(ref, tx, operation, deadline)
                    if done is not None:
                        return reply, done
            view = self._read(ref, view.cells, deadline)

    def forget(self, ref: JobRef) -> None:
        """Know nothing of a job's cells any more."""
        for key in [key for key in list(self._cells) if key[0] == ref]:
            self._cells.pop(key, None)

    def _remembered(self, ref: JobRef, place: Place) -> View | None:
        job = self._jobs.recent(ref)
        if job is None:
            return None
        return View(job, {place: self._cells.get((ref, *place)) or CachedJob()}, fresh=False)

    def _read(self, ref: JobRef, places: Iterable[Place], deadline: Deadline) -> View:
        names = self._database.names
        cells = {names.cell(ref, *place): place for place in places}
        job_name = names.job(ref.key)
        got = self._database.get([job_name, *cells], deadline)
        job = self._jobs.checked(ref, self._jobs.read(ref.key, got.documents.get(job_name)))
        return View(job, {place: known_of(job.job, got, name) for name, place in cells.items()}, fresh=True)

    def _read_cell(self, ref: JobRef, job: KnownJob, place: Place, deadline: Deadline) -> CachedJob:
        name = self._database.names.cell(ref, *place)
        return known_of(job.job, self._database.get([name], deadline), name)

    def _try(self, ref: JobRef, tx: StepTransaction, operation: str, deadline: Deadline) -> Done | None:
        """Commit; None if that did not hold or its answer was lost: read again."""
        try:
            return self._commit(ref, tx, operation, deadline)
        except PreconditionFailed as error:
            if tx.view.fresh:  # somebody writes the same cell
                deadline.pause(error)
        except Transient as error:
            deadline.pause(error)
        return None

    def _commit(self, ref: JobRef, tx: StepTransaction, operation: str, deadline: Deadline) -> Done:
        rings: dict[Place, list[str]]
        rings = {place: [*tx.view.cells[place].operations, operation][-REMEMBERED:] for place in tx.puts}
        writes = [self._cell_write(ref, tx, place, rings[place]) for place in tx.puts]
        answer = self._database.commit([*writes, *self._other_writes(ref, tx)], deadline)
        now = int(microseconds(answer.write_results[0].transform_results[0].timestamp_value))
        for place, result in zip(tx.puts, answer.write_results):
            cell = tx.puts[place][1]
            set_time(cell, now)
            self._remember(ref, place, CachedJob(cell, result.update_time, rings[place]))
        if tx.reopens:
            tx.view.job.at = 0.0
        return Done(tx.view.job, tx.puts)

    def _cell_write(self, ref: JobRef, tx: StepTransaction, place: Place, ring: list[str]) -> Any:
        new = tx.puts[place][1]
        collection = self._database.names.address.collection
        fields = cell_fields(tx.job, *place, new, collection=collection)
        fields["operations"] = ring
        times = ["timestamp"]
        if new.began_at == NOW:
            times.append("beganAt")
        else:
            fields["beganAt"] = Moment(new.began_at) if new.began_at else None
        return requests.put(self._database.names.cell(ref, *place), fields, tx.view.cells[place].stamp, times)

    def _other_writes(self, ref: JobRef, tx: StepTransaction) -> list[Any]:
        names, job, known = self._database.names, tx.job, tx.view.cells
        if tx.view.job.foreign:  # who migrates it begins with this document: no write may come after that
            return [requests.touch(names.job(ref.key), {}, tx.view.job.stamp)]
        puts = ((at, known[at].as_counted(), new) for at, (_, new) in tx.puts.items())
        changes = tallies.changes(job, puts)
        writes = [
            requests.add(names.tally(ref, tag, shard), tallies.fields_of(job, tag), change._asdict())
            for (tag, shard), change in changes.items()
        ]
        if job.plan and tx.reopens:
            writes.append(requests.touch(names.job(ref.key), {"reopened": new_operation()}, tx.view.job.stamp))
        return writes

    def _remember(self, ref: JobRef, place: Place, known: CachedJob) -> None:
        remember(self._cells, (ref, *place), known, MOST_CELLS)

    def _recovered(self, ref: JobRef, view: View, tx: StepTransaction, reply: Reply) -> tuple[Reply, Done]:
        """Give the reply of a step whose commit was done though its answer was lost."""
        primary = view.cells[tx.primary]
        self._remember(ref, tx.primary, primary)
        now = primary.cell.timestamp if primary.cell else 0
        for _, new in tx.puts.values():
            set_time(new, now)
        return reply, Done(view.job, tx.puts)
