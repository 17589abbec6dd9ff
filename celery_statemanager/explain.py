"""Explain why a job has not settled: a sentence for each range of open cells, and what happens next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

from celery_statemanager import leases
from celery_statemanager.codec import state_of
from celery_statemanager.durations import rough_duration
from celery_statemanager.indexset import IndexSet
from celery_statemanager.leases import Received, Report, cell_name
from celery_statemanager.liveness import WorkerShare, WorkerSnapshot
from celery_statemanager.models import Status, status_name
from celery_statemanager.records import (
    CALLBACK_ROW,
    ERRBACKS,
    Cell,
    Column,
    JobRecord,
    JobRef,
    OutboxState,
    message_with_place,
    split_latch,
)
from celery_statemanager.stores.capabilities import Outbox

MOST_CELLS = 1_000
"""Maximum number of cells in progress that are read one by one; the rest is only counted."""

NO_WORKER = "no live worker uses this store: start one, or compare the store_url of the running ones"


LOST_FATE = "its message is published again, or it is marked LOST, depending on the policy of its task"
"""The text of what a sweep does with a lost attempt."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why some rows of a column, or a callback, are not done.

    Attributes:
        tag: for a callback, the name of its latch, followed by ``.generation`` if that is an earlier one.
        rows: None for a callback.
        code: one word for programs: ``unpublished``, ``paused``, ``unwritten``, ``delayed``, ``queued``, ``received``,
            ``waits``, ``running``, ``stalled``, ``silent``, ``lost``, ``retrying``, ``resetting``, ``written``,
            ``callback``, ``more``.
        text: a sentence for people.
    """

    tag: str
    rows: IndexSet | None
    code: str
    text: str


def explain(store: Outbox, job: JobRecord) -> list[Reason]:
    """Return the reasons why a job has not settled or its callbacks have not run. Raises: JobNotFound."""
    return JobDiagnosis(store, job.ref).reasons()


class JobDiagnosis:
    """The cells of one incarnation of a job and the workers of its store, as of one moment.

    Attributes:
        job: the record that the reasons refer to.
        now: the moment.

    Raises: JobNotFound – from the constructor.
    """

    def __init__(self, store: Outbox, ref: JobRef) -> None:
        self._store = store
        self.job, self._columns = store.column_summaries(ref, indexes=True)
        self._outbox = None if self.job.flow is None else store.get_outbox(ref)
        self._workers = WorkerSnapshot(store, ref)
        self.now = self._workers.now
        alive = [each.report for each in self._workers.alive]
        self._received = [row for each in alive for row in each.received]
        self._left_behind = [row for each in self._workers.dead for row in each.report.received]
        self._unlisted = _unlisted(alive)

    def reasons(self) -> list[Reason]:
        """Return a reason for each range of open rows and each callback. Raises: JobNotFound."""
        found = [each for column in self._columns for each in self._in_progress(column)]
        to_reset = self.job.generation.rows_to_reset
        if to_reset:
            text = f"being reset for generation {self.job.generation.number}; {self._sweep()}: it completes the rerun"
            found += [each for column in self._columns for each in self._resetting(column, to_reset, text)]
        if not self.job.cancelled:
            found += [each for column in self._columns for each in self._missing(column)]
        return _merged(found) + list(self._callbacks())

    def _resetting(self, column: Column, rows: IndexSet, text: str) -> Iterator[Reason]:
        """Yield a reason for the rows of a rerun that are still failed."""
        yield from _some(column.tag, rows.within(column.failed or IndexSet()), "resetting", text)

    def _missing(self, column: Column) -> Iterator[Reason]:
        """Yield reasons for the rows that never began."""
        left = column.missing or IndexSet()
        if self._outbox is None:
            yield from _some(column.tag, left, "unwritten", "never written; no task was submitted for it")
            return
        held_back = "paused" if self._paused else "unpublished"
        returned = left.within(self._outbox.returned.waiting)
        yield from _some(column.tag, returned, held_back, self._paused or self._due_again())
        left = left.without(returned)
        unsent = IndexSet(range(self._outbox.claimed, self.job.num_tasks))
        yield from _some(column.tag, left.within(unsent), held_back, self._why_unpublished(self._outbox))
        left = left.without(unsent)
        for earlier in self._columns:
            unfinished = (earlier.missing or IndexSet()).union(earlier.running or IndexSet())
            held_up = left.within(self._rows_with(earlier.tag, column.tag)).within(unfinished)
            yield from _some(column.tag, held_up, "waits", f"waits for stage {earlier.tag!r} of its row")
            left = left.without(held_up)
        returned = left.within(self._outbox.returned.begun)
        yield from _some(column.tag, returned, "unpublished", self._due_again())
        yield from self._sent(column.tag, left.without(returned))

    def _due_again(self) -> str:
        return f"due again; {self._sweep()}: it is published"

    @property
    def _paused(self) -> str:
        """The reason why the job is paused, as a text; empty if it is not."""
        flow = self.job.flow
        if flow is None or not flow.paused:
            return ""
        return "paused" if flow.pause_reason is None else f"paused: {flow.pause_reason}"

    def _why_unpublished(self, outbox: OutboxState) -> str:
        if self._paused:
            return self._paused
        window = self.job.max_in_flight
        if window is not None:
            in_flight = outbox.in_flight(self._columns)
            if in_flight >= window:
                return f"waits for its turn, {in_flight:,} of {window:,} in flight"
        elif any(claim.until > self.now for claim in outbox.claims.values()):
            return "being published"
        return f"not published yet; {self._sweep()}: it is published"

    def _sent(self, tag: str, left: IndexSet) -> Iterator[Reason]:
        """Yield reasons for the rows whose message is with a worker or the broker."""
        for share in self._workers.alive:
            since = share.report.stands_still_since(share.renewed_at, share.lease_until)
            if since is not None:
                text = f"received by worker {share.worker_id}, whose main loop has been blocked since {_clock(since)}"
                held = left.within(_under(tag, share.report.received))
                yield from _some(tag, held, "received", f"{text}; {self._published_again()}")
                left = left.without(held)
        held = left.within(_under(tag, self._received))
        delayed, until = self._delayed(tag)
        yield from _some(tag, held.within(delayed), "delayed", f"received by a worker, delayed until {until}")
        yield from _some(tag, held.without(delayed), "received", "received by a worker, not begun")
        left = left.without(held)
        held = left.within(_under(tag, self._left_behind))
        fate = f"{self._published_again()}, unless the broker delivers it at once"
        yield from _some(tag, held, "lost", f"received by a dead worker; {fate}")
        left = left.without(held)
        yield from _some(tag, left.within(delayed), "delayed", f"delayed until {until} by the broker{self._unlisted}")
        fate = "no live worker has received it; unknown whether it is in a queue, kept for a dead worker, or lost"
        yield from _some(tag, left.without(delayed), "queued", f"{fate}{self._unlisted}")

    def _delayed(self, tag: str) -> tuple[IndexSet, str]:
        """Return the rows whose first stage has this tag and an eta or a countdown, and the latest of these times."""
        flow = self.job.flow
        if flow is None or flow.delayed_until <= self.now:
            return IndexSet(), ""
        until = datetime.fromtimestamp(flow.delayed_until // 1_000_000, timezone.utc)
        shapes = self.job.plan.shapes if self.job.plan else ()
        first = IndexSet().union(*(rows for stages, rows in shapes if stages[0] == tag))
        rows = IndexSet.parse(flow.delayed).within(first)
        return rows, f"{until:%Y-%m-%d %H:%M:%S} UTC{' at the latest' if len(rows) > 1 else ''}"

    def _in_progress(self, column: Column) -> Iterator[Reason]:
        """Yield reasons for the rows that have begun and not ended."""
        rows = column.running or IndexSet()
        for number, row in enumerate(rows):
            if number == MOST_CELLS:
                rest = IndexSet([*rows][MOST_CELLS:])
                yield Reason(column.tag, rest, "more", f"{len(rest):,} more in progress")
                return
            cell = self._store.get_cell(self.job.ref, column.tag, row)
            if cell is not None and not cell.final:
                yield Reason(column.tag, IndexSet([row]), *self._cell(column.tag, row, cell))

    def _callbacks(self) -> Iterator[Reason]:
        """Yield reasons for callbacks whose latch is decided and that have not run to completion."""
        for name, latch in self.job.latches.items():
            if latch.callback is None or latch.decided_at is None:
                continue
            if split_latch(name)[0] == ERRBACKS and not latch.due:  # Celery runs them, and no cell shows their end
                continue
            tag = self.job.callback_tag(name)
            cell = self._store.get_cell(self.job.ref, tag, CALLBACK_ROW)
            age = self._age(latch.decided_at)
            if latch.due and cell is None:
                yield Reason(name, None, "callback", f"decided {age} ago, not published; {self._sweep()}: it is sent")
            elif cell is None:
                yield Reason(name, None, "callback", f"decided {age} ago, published, not begun")
            elif not cell.final:
                yield Reason(name, None, "callback", self._cell(tag, CALLBACK_ROW, cell)[1])
            elif cell.status != Status.FINISHED:
                yield Reason(name, None, "callback", f"ended {status_name(cell.status)}: {cell.message}")

    def _rows_with(self, earlier: str, later: str) -> IndexSet:
        """Return the rows that run one stage before the other."""
        shapes = self.job.plan.shapes if self.job.plan else ()
        return IndexSet().union(
            *(
                rows
                for stages, rows in shapes
                if {earlier, later} <= {*stages} and stages.index(earlier) < stages.index(later)
            )
        )

    def _cell(self, tag: str, row: int, cell: Cell) -> tuple[str, str]:
        state = state_of(self.job.job_id, tag, row, cell)
        wrote = f"last write {self._age(cell.stall.since or cell.timestamp)} ago"
        if not cell.open:
            if cell.attempt and cell.is_due and self._outbox and row in self._outbox.returned.begun:
                return "unpublished", self._due_again()
            if cell.attempt:
                return "retrying", f"waits for its next delivery: {state.message or 'started'}, {wrote}"
            return "written", f"written by a Manager, {wrote}"
        attempt = f"attempt {cell.attempt}"
        if cell.owner is None:
            return "running", f"{attempt} of a Manager or an eager run, {wrote}"
        worker = self._workers.shares.get(cell.owner)
        host, _, pid = cell.owner.rpartition(":")[0].partition(":")
        where = f"on {host}, worker pid {pid}, {attempt}, {wrote}"
        if worker is not None and worker.lease_until > self.now and self._listed(worker, tag, row, cell):
            left = self._age(2 * self.now - worker.lease_until)
            if self._is_silent(worker):
                return "silent", self._silent(host, pid, worker)
            limits = f"; {worker.report.limits}" if worker.report.limits else ""
            if cell.stall.since:
                return "stalled", f"{self._stalled(cell)} ({where}){limits}"
            return "running", f"running {where}, lease until {_clock(worker.lease_until)} ({left} more){limits}"
        return "lost", f"lost {where}: its worker is dead or no longer lists it; {self._sweep()}: {LOST_FATE}"

    def _is_silent(self, worker: WorkerShare) -> bool:
        """Return whether a live worker has missed a renewal of its record by half of the time between two."""
        lease = worker.lease_until - worker.renewed_at
        return self.now - worker.renewed_at > 1.5 * lease / leases.RENEWALS

    def _silent(self, host: str, pid: str, worker: WorkerShare) -> str:
        """Return for how long a worker has not renewed its record, and by when a sweep recovers its rows."""
        text = f"worker {host}, pid {pid}, has been silent for {self._age(worker.renewed_at)}"
        until, turn = worker.lease_until, self._workers.turn
        if turn is None or self._workers.sweep_at is None:
            return f"{text}; its lease ends at {_clock(until)}, and {self._sweep()}: its rows are recovered"
        latest = until + 2 * (turn.lease_until - turn.renewed_at)  # sweeps are up to two intervals apart
        return f"{text}; unless it returns, its rows are recovered at {_clock(latest)} at the latest"

    def _stalled(self, cell: Cell) -> str:
        """Return for how long the attempt of a live worker has not moved, and where its body stands."""
        still = f"alive, but has not moved for {rough_duration((self.now - cell.stall.since) / 1_000_000)}"
        return message_with_place(still, cell.stall.stands_in)

    def _listed(self, worker: WorkerShare, tag: str, row: int, cell: Cell) -> bool:
        return cell.began_at > worker.renewed_at or worker.report.lists(cell_name(self.job.ref, tag, row))

    def _published_again(self) -> str:
        return f"{self._sweep()}: its message is published again"

    def _sweep(self) -> str:
        """Return when the next sweep is due, or that there is none."""
        due, turn = self._workers.sweep_at, self._workers.turn
        if due is not None:
            return f"next sweep at {_clock(due)}"
        last = "no sweep yet" if turn is None else f"no sweep for {self._age(turn.renewed_at)}"
        if any(not self._is_silent(each) for each in self._workers.alive):
            return f"{last}, a live worker sweeps soon"
        return f"{last}, start a worker or beat, or run sweep-state"

    def _age(self, moment: int) -> str:
        seconds = max(0, (self.now - moment) // 1_000_000)
        if seconds < 120:
            return f"{seconds} s"
        return f"{seconds // 60} min" if seconds < 7_200 else f"{seconds // 3_600} h"


def _clock(moment: int) -> str:
    return datetime.fromtimestamp(moment // 1_000_000, timezone.utc).strftime("%H:%M:%S UTC")


def _unlisted(reports: list[Report]) -> str:
    """Return the end of a sentence about rows that no live worker lists."""
    if not reports:
        return f"; {NO_WORKER}"
    cut = any("received" in each.cut for each in reports)
    return ", or one has received it and does not list it, because it holds too many" if cut else ""


def _under(tag: str, rows: Iterable[Received]) -> IndexSet:
    return IndexSet(row.task_index for row in rows if row.tag == tag)


def _some(tag: str, rows: IndexSet, code: str, text: str) -> Iterator[Reason]:
    if rows:
        yield Reason(tag, rows, code, text)


def _merged(reasons: Iterable[Reason]) -> list[Reason]:
    """Merge the rows that have the same reason."""
    found: dict[tuple[str, str, str], IndexSet] = {}
    for each in reasons:
        key = (each.tag, each.code, each.text)
        found[key] = found.get(key, IndexSet()).union(each.rows or IndexSet())
    return [Reason(tag, rows, code, text) for (tag, code, text), rows in found.items()]
