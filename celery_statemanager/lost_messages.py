"""Find published messages that no broker and no worker has any more (rule R19).

A message counts as lost if it had not begun when a sweep found its queue empty, and one lease later it still has not,
the queue was empty in every sweep since, and no live worker lists it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple, Protocol

from celery_statemanager import completion
from celery_statemanager.at_work import AtWork
from celery_statemanager.indexset import IndexSet
from celery_statemanager.records import (
    CALLBACK_ROW,
    Cell,
    Column,
    JobRecord,
    JobRef,
    OutboxState,
    Place,
    WorkerRecord,
)
from celery_statemanager.stores.capabilities import Outbox
from celery_statemanager.suspects import RECORD, Lost, PutOff, Stage, Suspects

MOST_ROWS = 10_000
"""Maximum number of rows of a job and of jobs that are suspects at a time. The others are looked at later."""

FEW_CELLS = 200
"""The size of a job whose cells are read at once. Of a larger one, the counts are read first."""

CELLS_PER_LEASE = 10_000
"""Approximate number of cells of a job that are read within one lease, as long as none of its messages is suspect."""

MOST_CELLS = 500
"""Maximum number of cells that one sweep reads one by one, to learn where the messages of retries are."""

_put_off = PutOff()
"""The jobs and the messages that this process does not look at again before a time."""


class Queues(Protocol):
    """The queues of the broker, as the app of a sweep sees them."""

    sends_ahead: bool
    """Whether the broker sends messages to a worker whose main loop does not read them. Such a worker lists none."""

    def queues_of(self, job: JobRecord) -> frozenset[str]:
        """Return the queues of some messages of a job. They should include all that its messages go to."""

    def place_of(self, job: JobRecord, tag: str, row: int, cell: Cell | None = None) -> Place | None:
        """Return where a published message waits; None if that is unknown, as for one of another app.

        Args:
            cell: the cell of the message, if an attempt of it has begun.
        """

    def place_of_callback(self, job: JobRecord, latch: str, cell: Cell) -> Place | None:
        """Return where the published message of a callback waits; None if that is unknown, as for one of another app.

        Args:
            latch: its name.
        """

    def message_count(self, queue: str) -> int | None:
        """Return the number of messages in a queue, 0 if it does not exist; None if the broker does not know."""


class LostMessages:
    """Looks for lost messages in one sweep.

    Args:
        lease: in microseconds.
        at_work: the messages that run or that live workers have.
    """

    def __init__(self, store: Outbox, queues: Queues, lease: int, now: int, at_work: AtWork) -> None:
        self._store = store
        self._queues = queues
        self._lease = lease
        self._now = now
        self._at_work = at_work
        self._found = Suspects()
        self._refs: dict[str, JobRef] = {}
        self._counts: dict[str, int | None] = {}
        self._reads = 0

    def look_at(self, job: JobRecord, outbox: OutboxState, unpublished: IndexSet) -> None:
        """Note the rows of a job whose messages have not begun and are in no queue.

        Args:
            unpublished: claimed rows whose publisher has died and may not have published them.

        Raises: JobNotFound, StoreError.
        """
        if outbox.claimed == 0 or not any(map(self._is_empty, self._queues.queues_of(job))):
            return
        is_put_off = _put_off.until(job.ref) > self._now and not self._old.has_any(job.incarnation)
        if is_put_off or not self._at_work.is_known:
            return
        columns = self._columns(job, outbox)
        if columns is None:
            return
        self._refs[job.incarnation] = job.ref
        for tag, rows in not_ended(job, outbox, unpublished, columns).items():
            if not job.cancelled:
                self._look_at_unbegun(job, tag, rows.unbegun.head(MOST_ROWS))
            self._look_at_retries(job, tag, rows.begun.without(self._at_work.held_rows(job.ref, tag)))
        if job.plan and not self._found.has_any(job.incarnation):
            _put_off.put(job.ref, self._now + self._lease * job.plan.expected // CELLS_PER_LEASE)

    def _look_at_unbegun(self, job: JobRecord, tag: str, rows: IndexSet) -> None:
        found: defaultdict[str, list[int]] = defaultdict(list)
        for row in rows:
            message = (job.ref, tag, row)
            if self._at_work.has(*message) or _put_off.until(message) > self._now:
                continue
            place = self._queues.place_of(job, tag, row)
            if place is not None and place.delayed_until > self._now:
                _put_off.put(message, place.delayed_until)
            elif place is not None and self._is_empty(place.queue):
                found[place.queue].append(row)
        for queue, missing in found.items():
            self._found.add(queue, Stage(job.incarnation, tag), IndexSet(missing))

    def _look_at_retries(self, job: JobRecord, tag: str, rows: IndexSet) -> None:
        """Look at rows that have begun and do not run.

        One that is not suspect is read once in a lease, or when its eta has passed. If there are too many for one
        sweep, those come first that were read least recently.
        """
        stage = Stage(job.incarnation, tag)
        old = self._old.rows_of(stage).within(rows)
        for row in (*old, *sorted(rows.without(old), key=lambda row: _put_off.until((job.ref, tag, row)))):
            message = (job.ref, tag, row)
            if self._at_work.has(*message) or (row not in old and _put_off.until(message) > self._now):
                continue
            if self._reads == MOST_CELLS:
                return
            self._reads += 1
            cell = self._store.get_cell(*message)
            place = self._queues.place_of(job, tag, row, cell) if cell and cell.awaits_message else None
            if place is not None and place.delayed_until <= self._now and self._is_empty(place.queue):
                self._found.add(place.queue, stage, IndexSet([row]))
            else:
                _put_off.put(message, max(place.delayed_until if place else 0, self._now + self._lease))

    def look_at_callbacks(self, job: JobRecord) -> None:
        """Note the callbacks of a job that are published, do not run, and whose message is in no queue.

        A cell is read only if the queue of the callback is empty. Record the callbacks that have ended.

        Raises: JobNotFound, StoreError.
        """
        for name, latch in job.latches.items():
            place = None if latch.place is None else self._queues.place_of_callback(job, name, Cell())
            if place is not None and place.delayed_until <= self._now and self._is_empty(place.queue):
                self._look_at_callback(job, name)

    def _look_at_callback(self, job: JobRecord, name: str) -> None:
        tag = job.callback_tag(name)
        cell = self._store.get_cell(job.ref, tag, CALLBACK_ROW) or Cell()
        if cell.final:
            completion.record_end(self._store, job.ref, tag)
        elif cell.awaits_message and not self._at_work.has(job.ref, tag, CALLBACK_ROW):
            place = self._queues.place_of_callback(job, name, cell)
            if place is not None and place.delayed_until <= self._now and self._is_empty(place.queue):
                self._refs[job.incarnation] = job.ref
                self._found.add(place.queue, Stage(job.incarnation, tag, is_callback=True), IndexSet([0]))

    def finish(self) -> list[Lost]:
        """Return the messages that are lost, and note the suspects for the next sweep. Raises: StoreError."""
        if self._record is None and not self._found.rows:
            return []
        new, lost = Suspects(), []
        for queue, found in self._found.rows.items():
            since = self._old.since.get(queue, self._now)
            old = self._old.rows.get(queue, {})
            still = {stage: rows.within(found.get(stage, IndexSet())) for stage, rows in old.items()}
            still = {stage: rows for stage, rows in still.items() if rows}
            if still and self._now - since >= self._lease:
                lost += [self._lost(queue, stage, rows, since) for stage, rows in still.items()]
                still = {}
            new.since[queue] = since if still else self._now
            new.rows[queue] = still or found
        self._store.put_worker(RECORD, new.to_json(), 0)
        return lost

    def _lost(self, queue: str, stage: Stage, rows: IndexSet, since: int) -> Lost:
        return Lost(
            self._refs[stage.incarnation], stage.tag, (CALLBACK_ROW,) if stage.is_callback else rows, queue, since
        )

    @cached_property
    def _record(self) -> WorkerRecord | None:
        return self._store.get_worker(RECORD)

    @cached_property
    def _old(self) -> Suspects:
        """The suspects of the last sweep; none if it was more than a lease ago."""
        if self._record is None or self._now - self._record.renewed_at > self._lease:
            return Suspects()
        return Suspects.from_json(self._record.body)

    def _columns(self, job: JobRecord, outbox: OutboxState) -> list[Column] | None:
        """Return the columns of a job with index sets; None if all its published messages run or are with workers."""
        if job.plan is not None and job.plan.expected > FEW_CELLS:
            _, counts = self._store.column_summaries(job.ref)
            if outbox.in_flight(counts) <= self._at_work.count(job.ref):
                return None
        return self._store.column_summaries(job.ref, indexes=True)[1]

    def _is_empty(self, queue: str) -> bool:
        if queue not in self._counts:
            self._counts[queue] = self._queues.message_count(queue)
        return self._counts[queue] == 0


class Rows(NamedTuple):
    """Rows with a published message: those that have not begun the stage of the message, and those that have."""

    unbegun: IndexSet
    begun: IndexSet


def not_ended(job: JobRecord, outbox: OutboxState, unpublished: IndexSet, columns: Iterable[Column]) -> dict[str, Rows]:
    """Return the published rows that have not ended, by the tag of their present stage.

    Args:
        unpublished: claimed rows that may not be published.
        columns: those of the job, with index sets.
    """
    by_tag = {column.tag: column for column in columns}
    waiting = unpublished.union(outbox.returned.begun, outbox.returned.waiting)
    published = IndexSet(range(outbox.claimed)).without(waiting)
    found: dict[str, Rows] = {}
    for stages, rows in job.plan.shapes if job.plan else ():
        left = rows.within(published)
        for tag in stages:
            column = by_tag.get(tag)
            if column is None:
                break
            missing, running, *ended = (
                each or IndexSet() for each in (column.missing, column.running, column.failed, column.not_run)
            )
            earlier = found.get(tag, Rows(IndexSet(), IndexSet()))
            found[tag] = Rows(earlier.unbegun.union(left.within(missing)), earlier.begun.union(left.within(running)))
            left = left.without(missing.union(running, *ended))
    return found
