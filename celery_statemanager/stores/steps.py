"""The atomic steps, defined once over the reads and writes of a transaction.

A store that runs steps in Python (memory, SQLite, Firestore) passes a ``Transaction``. Redis implements the same steps
in Lua.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from celery_statemanager import aggregate
from celery_statemanager.errors import BeginRefused, JobCancelled
from celery_statemanager.indexset import IndexSet
from celery_statemanager.records import (
    Begin,
    BeginReply,
    Cell,
    Claim,
    Claimed,
    ClaimRequest,
    JobRecord,
    OutboxState,
    Reset,
    Returned,
    StoredCell,
    Tally,
    Verdict,
    Write,
    WriteReply,
    value_row,
)
from celery_statemanager.transitions import apply_begin, apply_write, blocked, reset, unblocked

_NOTHING = Claimed(IndexSet(), IndexSet(), 0)


class ClaimTransaction(Protocol):
    """One job inside a store's transaction, as ``claim`` uses it.

    Attributes:
        now: the store's time in microseconds, not earlier than any previous write of the job.
    """

    now: int

    @property
    def job(self) -> JobRecord:
        """The job, including the changes of this transaction."""

    def total(self) -> Tally:
        """Sum the tallies of the expected columns."""

    def outbox(self) -> OutboxState:
        """Read which rows are claimed. Used only for a job with a ``flow``."""

    def put_outbox(self, state: OutboxState) -> None:
        """Store which rows are claimed."""


class WriteTransaction(ClaimTransaction, Protocol):
    """One job inside a store's transaction, as ``write``, ``begin`` and ``update_job`` use it."""

    def cell(self, tag: str, task_index: int) -> Cell | None:
        """Read a cell."""

    def put(self, tag: str, task_index: int, old: Cell | None, new: Cell) -> None:
        """Store a cell and update everything derived from it: tally, indexes, change feed."""

    def put_value(self, task_index: int, value: str | None) -> None:
        """Store what a row keeps of its newest finished stage, or remove it."""

    def put_job(self, job: JobRecord) -> None:
        """Store the changeable part of the job under its next revision."""


class Transaction(WriteTransaction, Protocol):
    """The transaction that a ``TransactionalStore`` passes to every step."""

    def rewrite(self, tag: str, task_index: int, old: Cell, new: Cell) -> None:
        """Store a migrated cell and update its tally. This is neither a change to watches nor activity of the job."""


def rewrite(tx: Transaction, cells: Sequence[StoredCell]) -> int:
    """Replace the cells whose mark is unchanged; return their number."""
    replaced = 0
    for found in cells:
        old = tx.cell(found.tag, found.task_index)
        if old is not None and mark_of(old) == found.mark:
            tx.rewrite(found.tag, found.task_index, old, found.cell)
            replaced += 1
    return replaced


def mark_of(cell: Cell) -> tuple[int, int]:
    """Return a value that changes with every write and every migration of a cell."""
    return cell.version, cell.schema_version


def write(tx: WriteTransaction, request: Write) -> WriteReply:
    """Write one cell, block or unblock the later stages of its row, decide the latches, and claim what is due."""
    old = tx.cell(request.tag, request.task_index)
    cell = old or Cell()
    if cell.version and cell.event_id == request.event_id:
        found = _claimed_before(tx, request, cell)
        return WriteReply(cell, changed=False, claimed=found, again=found)
    begins = request.begins(cell)
    if request.begin is not None and begins:
        cell = _begin_late(tx, cell, request, request.begin)
        request = replace(request, attempt=cell.attempt)
    new = apply_write(tx.job, cell, request, tx.now)
    if new is cell:
        return WriteReply(cell, changed=False)
    tx.put(request.tag, request.task_index, old, new)
    if request.value is not None and new.succeeded:
        tx.put_value(value_row(request.tag, request.task_index), request.value or None)
    if request.due_again and not new.final:
        _give_back(tx, request.tag, request.task_index, new)
    if begins or (cell.awaits_end and request.ends_attempt):
        _unblock(tx, request.tag, request.task_index, new.event_id)
    if request.block_later_stages and new.final and new.status < 0:
        _block(tx, request.tag, request.task_index, new)
    decided = _decide(tx, request.tag, request.task_index, new)
    claimed = _claim_next(tx, request, cell, new)
    return WriteReply(new, decided, claimed=claimed.rows, again=claimed.again)


def claim(tx: ClaimTransaction, request: ClaimRequest) -> Claimed:
    """Claim the rows of dead publishers, and then due rows, as many as may be in flight.

    Rows that were returned come first, those that have begun before those that wait. Of a cancelled job, only the rows
    that have begun can be claimed, so that they end.
    """
    job = tx.job
    if job.flow is None or (job.settled and not request.drop_unclaimed):
        return _NOTHING
    old = tx.outbox()
    own = old.claims.get(request.publisher)
    left = request.returned.within(own.rows) if own else Returned()
    taken_over = IndexSet().union(*(each.rows for name, each in old.claims.items() if name in request.dead))
    returned = old.returned.minus(left.begun.union(left.waiting)).plus(left).minus(taken_over)
    room = request.limit
    if job.max_in_flight is not None and not job.cancelled:  # a row that has not begun will not make room any more
        in_flight = old.claimed - tx.total().rows - len(returned)
        room = max(0, min(room, job.max_in_flight - in_flight))
    begun = returned.begun.head(room)
    waiting, claimed = IndexSet(), old.claimed
    if not (job.cancelled or job.flow.paused):
        waiting = returned.waiting.head(room - len(begun))
        claimed = min(old.claimed + room - len(begun) - len(waiting), job.num_tasks)
    again = taken_over.union(begun, waiting)
    rows = again.union(IndexSet(range(old.claimed, claimed)))
    if job.cancelled and request.drop_unclaimed:
        claimed = job.num_tasks
    gone = {*request.dead, *request.ended, request.publisher}
    claims = {name: each for name, each in old.claims.items() if name not in gone}
    if rows:
        claims[request.publisher] = Claim(rows, tx.now, tx.now + round(request.lease * 1_000_000))
    new = OutboxState(claimed, claims, returned.minus(begun.union(waiting)))
    if new != old:
        tx.put_outbox(new)
    return Claimed(rows, again, job.num_tasks - claimed)


def reset_row(tx: WriteTransaction, request: Reset) -> bool:
    """Reset a row from one of its stages on, and return it to the outbox. Return False if it must not run again.

    The row is reset if all its cells from that stage on have ended or wait, not all of them have succeeded, and it was
    not reset in this generation. Nothing is reset once the job records that all rows are reset.
    """
    tag, row, job = request.tag, request.task_index, tx.job
    old = {each: tx.cell(each, row) for each in (tag, *(job.plan.after(tag, row) if job.plan else ()))}
    cells = {each: cell or Cell() for each, cell in old.items()}
    runs = any(not (cell.final or cell.waiting) for cell in cells.values())
    has_succeeded = all(cell.succeeded for cell in cells.values())
    is_resetting = job.generation.number == request.generation and job.generation.rows_to_reset
    was_reset = any(cell.generation == request.generation for cell in cells.values())
    if not is_resetting or job.cancelled or runs or has_succeeded or was_reset:
        return False
    new = {each: reset(cell, request.generation, request.event_id, tx.now) for each, cell in cells.items()}
    for each, cell in new.items():
        tx.put(each, row, old[each], cell)
    _give_back(tx, tag, row, new[tag])
    return True


def begin(tx: WriteTransaction, request: Begin, now: int | None = None) -> BeginReply:
    """Take an attempt, or return the reason for the refusal.

    Args:
        now: the time to compare with the deadline of the job; None for that of the transaction.
    """
    old = tx.cell(request.tag, request.task_index)
    cell = old or Cell()
    if cell.version and cell.event_id == request.event_id and cell.open:
        return BeginReply(Verdict.BEGUN, cell)
    if request.task_index >= 0 and tx.job.has_expired(tx.now if now is None else now):
        return BeginReply(Verdict.EXPIRED, cell)
    verdict, new = apply_begin(tx.job, cell, request, tx.now)
    if new is cell:
        return BeginReply(verdict, cell)
    tx.put(request.tag, request.task_index, old, new)
    if verdict is Verdict.PAUSED:
        _give_back(tx, request.tag, request.task_index, new)
    elif verdict is Verdict.BEGUN:
        _unblock(tx, request.tag, request.task_index, request.event_id)
    return BeginReply(verdict, new, _decide(tx, request.tag, request.task_index, new))


def update_job(tx: WriteTransaction, job: JobRecord) -> tuple[str, ...] | None:
    """Replace the changeable part of a job unless its revision has changed, and decide its latches."""
    if job.revision != tx.job.revision:
        return None
    changed = tx.job.with_changes_of(job)
    changed, names = _decided(changed, tx.total(), tx.now) if changed.plan else (changed, ())
    tx.put_job(changed)
    return names


CLAIMS_AT_AN_END = 10
"""Maximum number of rows that the end of a row claims: more than one, so that a window that is not full fills."""


def _give_back(tx: WriteTransaction, tag: str, task_index: int, cell: Cell) -> None:
    """Make the message of a cell due again. That of a callback becomes due with its latch, see ``completion``."""
    job, row = tx.job, IndexSet([task_index])
    if job.flow is None or task_index < 0:
        return
    is_first = job.plan is None or not job.plan.before(tag, task_index)
    returned = Returned(waiting=row) if cell.waiting and is_first else Returned(begun=row)
    state = tx.outbox()
    tx.put_outbox(replace(state, returned=state.returned.minus(row).plus(returned)))


def _claim_next(tx: WriteTransaction, write: Write, old: Cell, new: Cell) -> Claimed:
    """Claim the row itself for its next stage, or the rows for which its end makes room."""
    if write.publisher is None or not new.final or write.task_index < 0:
        return _NOTHING
    if write.next_is_due and new.succeeded:
        if tx.job.flow is None or tx.job.cancelled or old.succeeded:
            return _NOTHING
        row, state = IndexSet([write.task_index]), tx.outbox()
        claims = {**state.claims, write.publisher: Claim(row, tx.now, tx.now)}
        tx.put_outbox(replace(state, claims=claims, returned=state.returned.minus(row)))
        return Claimed(row, row, 0)
    if not tx.job.has_window:
        return _NOTHING
    state, row = tx.outbox(), IndexSet([write.task_index])
    if state.returned.within(row):  # a message of the row was due again, and another one has ended it
        tx.put_outbox(replace(state, returned=state.returned.minus(row)))
    return claim(tx, ClaimRequest(publisher=write.publisher, limit=CLAIMS_AT_AN_END))


def _claimed_before(tx: WriteTransaction, write: Write, cell: Cell) -> IndexSet:
    """Return the rows that the same write claimed when its response was lost.

    They have the time of that step and, unlike other claims, no lease.
    """
    claims_rows = write.next_is_due or tx.job.has_window
    if write.publisher is None or not cell.final or write.task_index < 0 or not claims_rows:
        return IndexSet()
    claims = [each.rows for each in tx.outbox().claims.values() if each.at == each.until == cell.timestamp]
    return next((rows for rows in claims if not write.next_is_due or write.task_index in rows), IndexSet())


def _begin_late(tx: WriteTransaction, cell: Cell, write: Write, request: Begin) -> Cell:
    job, ended = tx.job, write.ends_attempt  # then a cancel comes too late, as a pause does
    ran = replace(request, may_wait=False)
    verdict, new = apply_begin(job, cell, ran, tx.now, though_cancelled=ended, forgotten=write.attempt)
    if verdict is Verdict.CANCELLED and job.cancelled:
        raise JobCancelled(job.job_id, job.cancelled.reason)
    if verdict is not Verdict.BEGUN:
        raise BeginRefused(tx.job.job_id, request.tag, request.task_index, verdict.value)
    return replace(new, version=cell.version, event_id=cell.event_id)  # the write assigns the step's only version


def _block(tx: WriteTransaction, stage: str, task_index: int, failed: Cell) -> None:
    for tag in tx.job.plan.after(stage, task_index) if tx.job.plan else ():
        old = tx.cell(tag, task_index)
        if old is None or old.waiting:
            tx.put(tag, task_index, old, blocked(old or Cell(), failed, stage, failed.event_id, tx.now))


def _unblock(tx: WriteTransaction, stage: str, task_index: int, event_id: str) -> None:
    for tag in tx.job.plan.after(stage, task_index) if tx.job.plan else ():
        old = tx.cell(tag, task_index)
        if old is not None and old.blocked_by == stage:
            tx.put(tag, task_index, old, unblocked(old, event_id, tx.now))


def _decide(tx: WriteTransaction, tag: str, task_index: int, new: Cell) -> tuple[str, ...]:
    """Decide the latches after a change of a cell: only a final cell or, in a cancelled job, any cell can matter."""
    job = tx.job
    if job.plan is None or not (new.final or job.cancelled) or not job.plan.expects(tag, task_index):
        return ()
    decided, names = _decided(job, tx.total(), tx.now)
    if names:
        tx.put_job(decided)
    return names


def _decided(job: JobRecord, total: Tally, now: int) -> tuple[JobRecord, tuple[str, ...]]:
    """Return a planned job, cancelled if its policy demands it, with the latches that this decides, and their names."""
    job = aggregate.stopped(job, total, now)
    names = aggregate.decisions(job, job.plan.expected if job.plan else 0, total)
    return job.with_decided(names, now), names
