"""Find published messages that no broker and no worker has any more (rule R19).

A sweep notes messages that have not begun, or that were requeued, that no live worker lists, and that have left their
queue: it is empty, or messages that were published later have begun. One counts as lost if all sweeps of one lease have
found this.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from heapq import nsmallest

from celery_statemanager import completion
from celery_statemanager.at_work import AtWork, begun_rows, not_ended
from celery_statemanager.indexset import IndexSet
from celery_statemanager.queue_state import Queues, QueueState
from celery_statemanager.records import CALLBACK_ROW, Cell, Column, JobRecord, JobRef, OpenAttempt, OutboxState
from celery_statemanager.stores.capabilities import Outbox
from celery_statemanager.suspects import Lost, Notes, PutOff, Stage, Suspects, UnreadCell

MOST_ROWS = 10_000
"""Maximum number of rows of a stage that have not begun and that one sweep looks at. The others are looked at later."""

FEW_CELLS = 200
"""The size of a job whose cells are read at once. Of a larger one, the counts are read first."""

CELLS_PER_LEASE = 10_000
"""Approximate number of cells of a job that are read within one lease, as long as none of its messages is suspect."""

MOST_CELLS = 500
"""Maximum number of cells that one sweep reads one by one."""

STALE = 60_000_000
"""Microseconds by which the last activity of a job may be later than its record shows."""

_put_off = PutOff()
"""The jobs and the messages that this process does not look at again before a time."""

_not_overtaken = PutOff()
"""The jobs and the messages that it does not look at again before a time, unless a queue of the job is empty."""


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
        self._unread: list[UnreadCell] = []

    def look_at(self, job: JobRecord, outbox: OutboxState, unpublished: IndexSet) -> None:
        """Note the rows of a job whose messages have not begun and are in no queue.

        Args:
            unpublished: claimed rows whose publisher has died and may not have published them.

        Raises: JobNotFound, StoreError.
        """
        queues = self._queues.queues_of(job)
        if outbox.claimed == 0 or not queues:
            return
        self._state.add(job, outbox, unpublished, queues)
        is_empty = any(map(self._state.is_empty, queues))
        put_off = _put_off if is_empty else _not_overtaken
        is_put_off = put_off.until(job.ref) > self._now and not self._old.suspects.has_any(job.incarnation)
        if is_put_off or not self._at_work.is_known:
            return
        columns = self._columns(job, outbox) if is_empty else self._columns_if_overtaken(job, outbox, queues)
        if columns is None:
            return
        self._refs[job.incarnation] = job.ref
        unread = len(self._unread)
        for tag, rows in not_ended(job, outbox, unpublished, columns).items():
            if not job.cancelled:
                self._look_at_unbegun(job, tag, rows.unbegun.head(MOST_ROWS), queues, is_empty=is_empty)
            self._look_at_retries(job, tag, rows.begun.without(self._at_work.held_rows(job.ref, tag)))
        if job.plan and not self._found.has_any(job.incarnation) and len(self._unread) == unread:
            pause = self._lease * job.plan.expected // CELLS_PER_LEASE
            put_off.put(job.ref, self._now + (pause if is_empty else max(pause, self._lease)))
        if len(self._unread) > MOST_ROWS:
            self._unread = self.cells_to_read()

    def _look_at_unbegun(
        self, job: JobRecord, tag: str, rows: IndexSet, queues: frozenset[str], *, is_empty: bool
    ) -> None:
        """Look at rows that have not begun a stage.

        The message of a later stage was published when the stage before ended, not after the last activity of the job.
        That of a first stage may have been published again since, which its cell shows.

        Args:
            queues: those of the job.
            is_empty: whether one of them is empty.
        """
        stage, old = Stage(job.incarnation, tag), self._old.suspects.rows_of(Stage(job.incarnation, tag))
        found: defaultdict[str, list[int]] = defaultdict(list)
        for row in rows:
            message, is_first = (job.ref, tag, row), not (job.plan and job.plan.before(tag, row))
            published_by = self._state.overtaken.published_by(job, row, 0 if is_first else job.last_activity + STALE)
            is_put_off = _put_off.until(message) > self._now
            is_put_off |= not is_empty and row not in old and _not_overtaken.until(message) > self._now
            if is_put_off or self._at_work.has(*message) or not self._state.may_have_left(queues, published_by):
                continue
            place = self._queues.place_of(job, tag, row)
            if place is not None and place.delayed_until > self._now:
                _put_off.put(message, place.delayed_until)
            elif place is None or not self._state.has_left(place, published_by):
                _not_overtaken.put(message, self._now + self._lease)
            elif is_first and not self._state.is_empty(place.queue):
                self._unread.append(UnreadCell(job, tag, row, has_begun=False, is_suspect=row in old))
            else:
                found[place.queue].append(row)
        for queue, missing in found.items():
            self._found.add(queue, stage, IndexSet(missing))

    def _look_at_retries(self, job: JobRecord, tag: str, rows: IndexSet) -> None:
        """Look at rows that have begun and do not run, once in a lease or when the eta of their messages has passed."""
        old = self._old.suspects.rows_of(Stage(job.incarnation, tag))
        for row in rows:
            message, is_suspect = (job.ref, tag, row), row in old
            if not self._at_work.has(*message) and (is_suspect or _put_off.until(message) <= self._now):
                self._unread.append(UnreadCell(job, tag, row, has_begun=True, is_suspect=is_suspect))

    def cells_to_read(self) -> list[UnreadCell]:
        """Return the cells that ``look_at_cell`` must look at, after all jobs.

        If there are too many, those come first that are suspect, then those that were read least recently.
        """

        def order(each: UnreadCell) -> tuple[bool, int]:
            times = _put_off if each.has_begun else _not_overtaken
            return not each.is_suspect, times.until(each.message)

        return nsmallest(MOST_CELLS, self._unread, key=order)

    def look_at_cell(self, each: UnreadCell) -> None:
        """Note a message if its queue is empty, or its cell shows that messages have begun that were published later.

        Raises: JobNotFound, StoreError.
        """
        job, tag, row, has_begun, _ = each
        cell, place = self._store.get_cell(job.ref, tag, row) or Cell(), None
        if cell.awaits_message:
            place = self._queues.place_of(job, tag, row, cell if has_begun else None)
        published_by = self._state.overtaken.published_by(job, row, cell.timestamp)
        if place is not None and place.delayed_until <= self._now and self._state.has_left(place, published_by):
            self._note(job, tag, row, place.queue)
            return
        times = _put_off if has_begun else _not_overtaken
        times.put(each.message, max(place.delayed_until if place else 0, self._now + self._lease))

    def look_at_callbacks(self, job: JobRecord) -> None:
        """Note the callbacks of a job that are published, do not run, and whose message is in no queue.

        A cell is read only if the message is in no queue or has begun. Record the callbacks that have ended.

        Raises: JobNotFound, StoreError.
        """
        for name, latch in job.latches.items():
            place = None if latch.place is None else self._queues.place_of_callback(job, name, Cell())
            if place is None or place.delayed_until > self._now or not self._state.has_left(place, latch.published_at):
                continue
            tag = job.callback_tag(name)
            cell = self._store.get_cell(job.ref, tag, CALLBACK_ROW) or Cell()
            if cell.final and not latch.is_body:
                completion.record_end(self._store, job.ref, tag, cell)
            elif cell.awaits_message and not self._at_work.has(job.ref, tag, CALLBACK_ROW):
                self._look_at_callback(job, name, cell)

    def _look_at_callback(self, job: JobRecord, name: str, cell: Cell) -> None:
        place, published_by = self._queues.place_of_callback(job, name, cell), job.latches[name].published_at
        if place is not None and place.delayed_until <= self._now and self._state.has_left(place, published_by):
            self._note(job, job.callback_tag(name), CALLBACK_ROW, place.queue)

    def look_at_requeued(self, job: JobRecord, attempt: OpenAttempt) -> None:
        """Note a message that was requeued and has left its queue. One that merely waits there is not lost."""
        tag, row, cell = attempt.tag, attempt.task_index, attempt.cell
        message = (job.ref, tag, row)
        if _put_off.until(message) > self._now or self._at_work.lists(*message):
            return
        if row == CALLBACK_ROW:
            place = self._queues.place_of_callback(job, job.latch_of(tag), cell)
        else:
            place = self._queues.place_of(job, tag, row, cell)
        if place is None or not self._state.has_left(place, cell.timestamp):
            _put_off.put(message, self._now + self._lease)
        else:
            self._note(job, tag, row, place.queue)

    def _note(self, job: JobRecord, tag: str, row: int, queue: str) -> None:
        """Note that the message of one row, or of a callback, has left its queue."""
        self._refs[job.incarnation] = job.ref
        is_callback = row == CALLBACK_ROW
        self._found.add(queue, Stage(job.incarnation, tag, is_callback), IndexSet([0 if is_callback else row]))

    def finish(self) -> list[Lost]:
        """Return the messages that are lost, and write the notes for the next sweep. Raises: StoreError."""
        new, lost, old = Suspects(), [], self._old.suspects
        for queue, found in self._found.rows.items():
            since, still = old.since.get(queue, self._now), old.still_in(self._found, queue)
            if still and self._now - since >= self._lease:
                lost += [self._lost(queue, stage, rows, since) for stage, rows in still.items()]
                still = {}
            new.since[queue] = since if still else self._now
            new.rows[queue] = still or found
        notes = Notes(new, self._state.order(self._store.now()))
        if self._old.exists or new.rows or notes.order.snapshots:
            notes.write(self._store)
        return lost

    def _lost(self, queue: str, stage: Stage, rows: IndexSet, since: int) -> Lost:
        why = (
            f"queue {queue!r} is empty"
            if self._state.is_empty(queue)
            else f"later messages in queue {queue!r} have begun"
        )
        missing = (CALLBACK_ROW,) if stage.is_callback else rows
        return Lost(self._refs[stage.incarnation], stage.tag, missing, why, since)

    @cached_property
    def _old(self) -> Notes:
        return Notes.read(self._store, self._lease, self._now)

    @cached_property
    def _state(self) -> QueueState:
        return QueueState(self._queues, self._old.order, self._lease, self._now, self._at_work)

    def _columns(self, job: JobRecord, outbox: OutboxState) -> list[Column] | None:
        """Return the columns of a job with index sets; None if all its published messages run or are with workers."""
        is_large = job.plan is not None and job.plan.expected > FEW_CELLS
        if is_large and not self._lacks_any(job, outbox, self._store.column_summaries(job.ref)[1]):
            return None
        return self._store.column_summaries(job.ref, indexes=True)[1]

    def _columns_if_overtaken(self, job: JobRecord, outbox: OutboxState, queues: frozenset[str]) -> list[Column] | None:
        """Return the columns of a job with index sets; None if no message has left its queue without having begun."""
        overtaken_rows = self._state.overtaken.overtaken_rows(job, queues)
        if not overtaken_rows:
            return None
        counts = self._store.column_summaries(job.ref)[1]
        begun = begun_rows(job, counts)
        is_idle = self._state.may_have_left(
            queues, self._state.overtaken.published_by(job, 0, job.last_activity + STALE)
        )
        if self._lacks_any(job, outbox, counts) and (is_idle or (begun is not None and begun < overtaken_rows)):
            return self._store.column_summaries(job.ref, indexes=True)[1]
        _not_overtaken.put(job.ref, self._now + self._lease)
        return None

    def _lacks_any(self, job: JobRecord, outbox: OutboxState, counts: list[Column]) -> bool:
        """Return whether a published message of a job neither runs nor is with a worker."""
        return outbox.in_flight(counts) > self._at_work.count(job.ref)
