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
    StoredCell,
    Tally,
    Verdict,
    Write,
    WriteReply,
)
from celery_statemanager.transitions import apply_begin, apply_write, blocked, is_unreported, proven, unblocked


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
    """Write one cell, block or unblock the later stages of its row, and decide the job's latches."""
    old = tx.cell(request.tag, request.task_index)
    cell = old or Cell()
    if cell.version and cell.event_id == request.event_id:
        return WriteReply(cell, changed=False, claimed=_claimed_before(tx, request, cell))
    begins = request.begins(cell)
    stage = None
    if request.begin is not None and begins:
        stage = _unreported_stage(tx, request.begin)
        cell = _begin_late(tx, cell, request, request.begin, recovers=stage is not None)
        request = replace(request, attempt=cell.attempt)
    new = apply_write(tx.job, cell, request, tx.now)
    tx.put(request.tag, request.task_index, old, new)
    if stage is not None:
        _finish(tx, *stage, request.task_index, new.event_id)
    if begins or (cell.awaits_end and request.ends_attempt):
        _unblock(tx, request.tag, request.task_index, new.event_id)
    if request.block_later_stages and new.final and new.status < 0:
        _block(tx, request.tag, request.task_index, new)
    decided = _decide(tx, request.tag, request.task_index, new)
    return WriteReply(new, decided, claimed=_claim_next(tx, request, new))


def claim(tx: ClaimTransaction, request: ClaimRequest) -> Claimed:
    """Claim the rows of dead publishers, and then rows that no publisher has claimed, as many as may be in flight."""
    job = tx.job
    if not job.publishes:
        return Claimed(IndexSet(), IndexSet(), 0)
    state = tx.outbox()
    doubtful = IndexSet().union(*(each.rows for name, each in state.claims.items() if name in request.dead))
    claimed = min(state.claimed + request.limit, job.num_tasks)
    if job.max_in_flight is not None:
        claimed = min(claimed, tx.total().rows + job.max_in_flight)
    claimed = max(claimed, state.claimed)
    rows = doubtful.union(IndexSet(range(state.claimed, claimed)))
    claims = {name: each for name, each in state.claims.items() if name not in {*request.dead, request.publisher}}
    if rows:
        claims[request.publisher] = Claim(rows, tx.now, tx.now + round(request.lease * 1_000_000))
    if rows or len(claims) < len(state.claims):
        tx.put_outbox(OutboxState(claimed, claims))
    return Claimed(rows, doubtful, job.num_tasks - claimed)


def begin(tx: WriteTransaction, request: Begin) -> BeginReply:
    """Take an attempt, or return the reason for the refusal."""
    old = tx.cell(request.tag, request.task_index)
    cell = old or Cell()
    if cell.version and cell.event_id == request.event_id and cell.open:
        return BeginReply(Verdict.BEGUN, cell)
    stage = _unreported_stage(tx, request)
    verdict, new = apply_begin(tx.job, cell, request, tx.now, recovers=stage is not None)
    if new is cell:
        return BeginReply(verdict, cell)
    tx.put(request.tag, request.task_index, old, new)
    if verdict is Verdict.BEGUN:
        if stage is not None:
            _finish(tx, *stage, request.task_index, request.event_id)
        _unblock(tx, request.tag, request.task_index, request.event_id)
    return BeginReply(verdict, new, _decide(tx, request.tag, request.task_index, new))


def update_job(tx: WriteTransaction, job: JobRecord) -> tuple[str, ...] | None:
    """Replace the changeable part of a job unless its revision has changed, and decide its latches."""
    if job.revision != tx.job.revision:
        return None
    changed = tx.job.with_changes_of(job)
    names = aggregate.decisions(changed, changed.plan.expected, tx.total()) if changed.plan else ()
    tx.put_job(_with_decided(changed, names, tx.now))
    return names


CLAIMS_AT_AN_END = 10
"""Maximum number of rows that the end of a row claims: more than one, so that a window that is not full fills."""


def _claim_next(tx: WriteTransaction, write: Write, new: Cell) -> IndexSet:
    """Claim the rows for which the end of a row makes room, if the number of rows in flight is limited."""
    if write.publisher is None or not new.final or write.task_index < 0 or not tx.job.has_window:
        return IndexSet()
    return claim(tx, ClaimRequest(publisher=write.publisher, limit=CLAIMS_AT_AN_END)).rows


def _claimed_before(tx: WriteTransaction, write: Write, cell: Cell) -> IndexSet:
    """Return the rows that the same write claimed when its response was lost.

    They have the time of that step and, unlike other claims, no lease.
    """
    if write.publisher is None or not cell.final or write.task_index < 0 or not tx.job.has_window:
        return IndexSet()
    claims = tx.outbox().claims.values()
    return next((each.rows for each in claims if each.at == each.until == cell.timestamp), IndexSet())


def _begin_late(tx: WriteTransaction, cell: Cell, write: Write, request: Begin, *, recovers: bool) -> Cell:
    job, ended = tx.job, write.ends_attempt  # then a cancel comes too late
    verdict, new = apply_begin(
        job, cell, request, tx.now, though_cancelled=ended, forgotten=write.attempt, recovers=recovers
    )
    if verdict is Verdict.CANCELLED and job.cancelled:
        raise JobCancelled(job.job_id, job.cancelled.reason)
    if verdict is not Verdict.BEGUN:
        raise BeginRefused(tx.job.job_id, request.tag, request.task_index, verdict.value)
    return replace(new, version=cell.version, event_id=cell.event_id)  # the write assigns the step's only version


def _unreported_stage(tx: WriteTransaction, begin: Begin) -> tuple[str, Cell] | None:
    """Return the last earlier stage of the row that has begun, if a worker's begin proves that it has finished."""
    plan = tx.job.plan
    if plan is None or begin.owner is None:  # a Manager uses tags in any order
        return None
    for tag in plan.before(begin.tag, begin.task_index):
        cell = tx.cell(tag, begin.task_index)
        if cell is not None and cell.attempt:
            return (tag, cell) if is_unreported(cell) else None
    return None


def _finish(tx: WriteTransaction, tag: str, old: Cell, task_index: int, event_id: str) -> None:
    tx.put(tag, task_index, old, proven(old, event_id, tx.now))
    _unblock(tx, tag, task_index, event_id)


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
    names = aggregate.decisions(job, job.plan.expected, tx.total())
    if names:
        tx.put_job(_with_decided(job, names, tx.now))
    return names


def _with_decided(job: JobRecord, names: tuple[str, ...], now: int) -> JobRecord:
    return job.with_latches(**{name: replace(job.latches[name], decided_at=now) for name in names})
