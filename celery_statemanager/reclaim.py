"""Recover one attempt or one message that was lost: make its message due again, or end its cell."""

from __future__ import annotations

from typing import Protocol

from celery_statemanager import attempts, completion, leases
from celery_statemanager.errors import BeginRefused
from celery_statemanager.leases import Received
from celery_statemanager.liveness import ListedCells
from celery_statemanager.models import Status
from celery_statemanager.records import CALLBACK_ROW, Cell, JobRef, OpenAttempt, Write, new_event_id
from celery_statemanager.stores.capabilities import Outbox
from celery_statemanager.suspects import Lost

_DROPPED = "; the broker did not deliver it again"


class ReclaimActions(Protocol):
    """The actions of a sweep on tasks and their results. What belongs to another app is left to that app's sweep."""

    def finish_if_succeeded(self, attempt: OpenAttempt) -> bool:
        """Return whether a lost attempt is known to have succeeded, for example by its stored result; then end it."""

    def runs_again(self, attempt: OpenAttempt) -> bool | None:
        """Return whether the policy is to run a lost attempt again; None if its task belongs to another app."""

    def may_publish_again(self, ref: JobRef, tag: str, row: int) -> bool:
        """Return whether a message that was lost may be published again: a second delivery is vetoed or allowed."""

    def resend(self, ref: JobRef, message: str) -> bool:
        """Publish the message of a part of a replacement again. Return False if it belongs to another app.

        Raises: what the broker raises.
        """

    def publish(self, ref: JobRef, decided: tuple[str, ...]) -> int:
        """Publish the callbacks of decided latches. Return the number of published callbacks."""


class Reclaimer:
    """Recovers what was lost. Each action is a compare-and-set.

    Args:
        lease: in microseconds.
        max_lost: the number of losses at which a cell becomes LOST regardless of its policy.

    Attributes:
        marked: number of cells that were marked as LOST.
        requeued: number of messages that became due again, and of parts of replacements that were published again.
    """

    def __init__(self, store: Outbox, actions: ReclaimActions, lease: int, max_lost: int) -> None:
        self._store = store
        self._actions = actions
        self._lease = lease
        self._renewal = lease // leases.RENEWALS
        self._max_lost = max_lost
        self.marked = self.requeued = 0

    def is_lost(self, attempt: OpenAttempt, worker: ListedCells | None, now: int) -> bool:
        """Return whether an attempt is lost, given the record of its worker; None if it has none."""
        began_at = attempt.cell.began_at
        if worker is None:
            return began_at < now - self._lease
        if worker.gone_at <= now:
            return began_at <= worker.gone_at or began_at < now - self._lease
        name = leases.cell_name(attempt.ref, attempt.tag, attempt.task_index)
        ended_at = worker.ended.get(name, 0)
        if began_at < ended_at:
            return ended_at + self._renewal <= now
        return not worker.lists(name) and began_at < worker.renewed_at - self._renewal

    def reclaim_attempt(self, attempt: OpenAttempt) -> bool:
        """Mark a lost attempt or make its message due again. Return whether it needs no further sweep."""
        cell = attempt.cell
        record, now = self._store.get_worker(cell.owner or ""), self._store.now()
        worker = None if record is None else ListedCells.from_record(record, now, self._renewal)
        if not self.is_lost(attempt, worker, now):
            return True
        ref, place = attempt.ref, (attempt.tag, attempt.task_index)
        if self._actions.finish_if_succeeded(attempt):
            return True
        stopped = leases.was_stopped(record, leases.cell_name(ref, *place), cell.began_at, now)
        again = self._actions.runs_again(attempt)
        if again is None:
            return False
        if not again or (not stopped and cell.losses + 1 >= self._max_lost):
            most = None if stopped else self._max_lost
            decided = attempts.mark_lost(self._store, ref, *place, cell, new_event_id(), max_lost=most)
            self.marked += 1
            if decided:
                self._actions.publish(ref, decided)
            return True
        message = f"sent again: its worker {cell.owner} {'has stopped' if stopped else 'is dead'}"
        lost = Write.sent_back(*place, message, attempt=cell.attempt, is_open=True, counts_as_loss=not stopped)
        self._make_due(ref, lost)
        return True

    def return_received(self, row: Received, because: str) -> None:
        """Make a message due again that a worker has received and will not begin."""
        cell = self._store.get_cell(row.ref, row.tag, row.task_index) or Cell()
        if not (cell.open or cell.final or row.delivery < cell.delivery):
            message = f"sent again: {because}"
            back = Write.sent_back(row.tag, row.task_index, message, attempt=cell.attempt)
            back.kept = row.message
            back.event_id = (
                f"{row.task_index}.{row.tag}.{cell.delivery.publication}.back"  # of several sweeps, one counts
            )
            self._make_due(row.ref, back)

    def reclaim_part(self, row: Received, worker_id: str) -> bool:
        """Publish a part of a replacement again that ran in a dead worker, or end the row that waits for it.

        Returns: whether the row needs no further sweep.
        """
        cell = self._store.get_cell(row.ref, row.tag, row.task_index)
        if cell is not None and (cell.final or cell.delivery > row.delivery):
            return True
        if cell is not None and cell.open and cell.delivery == row.delivery:  # the task that waited for the part runs
            return True
        if row.message is not None:
            resent = self._actions.resend(row.ref, row.message)
            self.requeued += resent
            return resent
        message = f"lost with its worker {worker_id} (in a task of its replacement)"
        lost = Write.cut_off(row.tag, row.task_index, int(Status.LOST), message, row.delivery)
        try:
            self._write(row.ref, lost)
        except BeginRefused:
            return True
        self.marked += 1
        return True

    def end_lost_message(self, lost: Lost, row: int) -> None:
        """Make a lost message due again, or end its cell as LOST if its task could run twice and must not."""
        cell, place = self._store.get_cell(lost.ref, lost.tag, row) or Cell(), (lost.tag, row)
        if cell.timestamp > lost.since:  # it has begun, or another message was published or requeued
            return
        if cell.awaits_delivery:
            self.end_requeued(OpenAttempt(lost.ref, *place, cell))
        elif not cell.awaits_message:
            return
        elif self._actions.may_publish_again(lost.ref, *place):
            message = f"published again: its message was lost, {lost.why}"
            self._make_due(lost.ref, Write.sent_back(*place, message, attempt=cell.attempt))
        else:
            self._write(lost.ref, Write.lost(*place, f"its message was lost: {lost.why}"))
            self.marked += 1

    def end_requeued(self, attempt: OpenAttempt) -> None:
        """Make a requeued message due again that the broker has dropped, or end its cell if that happened too often."""
        cell, place = attempt.cell, (attempt.tag, attempt.task_index)
        reason = f"{(cell.message or 'requeued').partition(_DROPPED)[0]}{_DROPPED}"
        if cell.losses + 1 >= self._max_lost:
            rejected = Write.never_begun(*place, int(Status.REJECTED), reason)
            rejected.attempt = cell.attempt
            self._write(attempt.ref, rejected)
            self.marked += 1
        else:
            again = f"{reason}: sent again"
            self._make_due(attempt.ref, Write.sent_back(*place, again, attempt=cell.attempt, counts_as_loss=True))

    def _make_due(self, ref: JobRef, back: Write) -> None:
        """Make a message due again. That of a callback becomes due with its latch."""
        if back.task_index == CALLBACK_ROW:
            completion.make_due(self._store, ref, back.tag)
        self._write(ref, back)
        self.requeued += 1

    def _write(self, ref: JobRef, write: Write) -> None:
        """Write a cell and publish the callbacks of the latches that this decided."""
        decided = self._store.write(ref, write).decided
        if decided:
            self._actions.publish(ref, decided)
