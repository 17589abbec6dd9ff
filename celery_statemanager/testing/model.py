"""A job in dicts with a second implementation of the rules of writes, attempts and latches, to check stores against."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from celery_statemanager.models import Status
from celery_statemanager.records import Begin, Cell, JobRecord, JobRef, Verdict, Write
from celery_statemanager.testing import naive
from celery_statemanager.testing.kit import CANCELLED, FINISHED

Place = tuple[str, int]


@dataclass
class ExpectedJob:
    """The expected content of a job in a store.

    Attributes:
        history: every version of every cell; ``cells`` contains the newest versions.
        decided: the names of the decided latches.
    """

    job: JobRecord
    cells: dict[Place, Cell] = field(default_factory=dict)
    history: dict[tuple[Place, int], Cell] = field(default_factory=dict)
    cancelled: bool = False
    reason: str | None = None
    tombstoned: bool = False
    decided: set[str] = field(default_factory=set)

    @property
    def ref(self) -> JobRef:
        """The incarnation of the job."""
        return self.job.ref

    @property
    def places(self) -> list[Place]:
        """The cells that count in the aggregates."""
        return naive.expected(self.job, (tag for tag, _ in self.cells))

    def cell(self, place: Place) -> Cell:
        """Return a cell, or an empty one if it was never written."""
        return self.cells.get(place, Cell())

    def visible(self, place: Place) -> tuple[int, str | None]:
        """Return the status and message that readers see."""
        cell = self.cell(place)
        if self.cancelled and cell.status == 0 and not cell.open:
            return CANCELLED, self.reason
        return cell.status, cell.message

    def begin(self, request: Begin) -> Verdict:
        """Apply a Begin and return the verdict."""
        place = (request.tag, request.task_index)
        cell = self.cell(place)
        verdict = self._judge(cell, request)
        if verdict is Verdict.BEGUN:
            self._put(place, _taken(cell, request), request.event_id)
            self._unblock(place, request.event_id)
        elif verdict is Verdict.CANCELLED and not cell.open and 0 < cell.status < FINISHED:
            ended = replace(cell, status=CANCELLED, message=self.reason, kept=None)
            self._put(place, ended, request.event_id)
        self._decide(place)
        return verdict

    def write(self, request: Write) -> str:
        """Apply a write. Return ``written``, ``same`` or the name of the expected error."""
        place = (request.tag, request.task_index)
        cell = self.cell(place)
        if cell.version and cell.event_id == request.event_id:
            return "same"
        attempt = request.attempt
        begins = request.begin is not None and (attempt is None or attempt > cell.attempt)
        if request.begin is not None and begins:
            forgotten = attempt is not None
            verdict = self._judge(cell, request.begin, ignore_cancel=request.ends_attempt, forgotten=forgotten)
            if verdict is not Verdict.BEGUN:
                return "JobCancelled" if verdict is Verdict.CANCELLED else "BeginRefused"
            attempt = cell.attempt + 1 if attempt is None else attempt
            cell = replace(_taken(cell, request.begin), attempt=attempt)
        if attempt not in (None, cell.attempt):
            return "AttemptSuperseded"
        ends = request.status < 0 or request.status == FINISHED
        untouched = cell.status == 0 and not cell.open
        if self.cancelled and not request.ends_attempt and (untouched or not ends):
            return "JobCancelled"
        self._put(place, _written(cell, request), request.event_id)
        if begins:
            self._unblock(place, request.event_id)
        now = self.cells[place]
        if request.block_later_stages and not now.open and now.status < 0:
            self._block(place, now)
        self._decide(place)
        return "written"

    def cancel(self, reason: str | None) -> None:
        """Cancel the job."""
        self.cancelled, self.reason = True, reason
        self._decide(None)

    def migrate(self) -> None:
        """Change every cell to the next schema."""
        self.cells = {
            place: replace(cell, schema_version=cell.schema_version + 1) for place, cell in self.cells.items()
        }

    def _judge(self, cell: Cell, request: Begin, *, ignore_cancel: bool = False, forgotten: bool = False) -> Verdict:
        rank = (request.delivery > cell.delivery) - (request.delivery < cell.delivery)
        first_true: list[tuple[Callable[[], bool], Verdict]] = [
            (lambda: cell.status == FINISHED and not cell.open, Verdict.FINISHED),
            (lambda: "settled" in self.decided and not forgotten, Verdict.CLOSED),
            (lambda: self.cancelled and not ignore_cancel, Verdict.CANCELLED),
            (lambda: request.takes_over or forgotten, Verdict.BEGUN),
            (lambda: cell.open and request.supersedes == cell.attempt, Verdict.BEGUN),
            (lambda: rank < 0, Verdict.STALE),
            (lambda: rank == 0 and cell.open, Verdict.DUPLICATE),
        ]
        return next((verdict for holds, verdict in first_true if holds()), Verdict.BEGUN)

    def _put(self, place: Place, cell: Cell, event_id: str) -> None:
        version = self.cell(place).version + 1
        self.cells[place] = replace(cell, version=version, event_id=event_id)
        self.history[place, version] = self.cells[place]

    def _later(self, place: Place) -> list[Place]:
        tag, row = place
        for stages, rows in self.job.plan.shapes if self.job.plan else ():
            if row in rows and tag in stages:
                return [(each, row) for each in stages[stages.index(tag) + 1 :]]
        return []

    def _block(self, place: Place, failed: Cell) -> None:
        message = f"not run: stage {place[0]!r} failed: {failed.message or failed.status}"
        for later in self._later(place):
            cell = self.cell(later)
            if cell.status == 0 and not cell.open:
                blocked = replace(cell, status=failed.status, message=message, blocked_by=place[0], kept=None)
                self._put(later, blocked, failed.event_id)

    def _unblock(self, place: Place, event_id: str) -> None:
        for later in self._later(place):
            cell = self.cell(later)
            if cell.version and cell.blocked_by == place[0]:
                self._put(later, replace(cell, status=0, message=None, blocked_by=None), event_id)

    def _decide(self, place: Place | None) -> None:
        if self.job.plan is None or not (place is None or place in self.places):
            return
        cells = [self.cell(each) for each in self.places]
        final = [not cell.open and (cell.status < 0 or cell.status == FINISHED) for cell in cells]
        resting = not any(cell.open or 0 < cell.status < FINISHED for cell in cells)
        if resting if self.cancelled else all(final):
            self.decided.add("settled")
        if all(is_final and cell.status == FINISHED for cell, is_final in zip(cells, final)):
            self.decided.add("success")
        if any(is_final and cell.status < 0 and cell.status != CANCELLED for cell, is_final in zip(cells, final)):
            self.decided.add("failure")


def _taken(cell: Cell, request: Begin) -> Cell:
    superseded = cell.open and cell.owner is not None and request.supersedes == cell.attempt
    return replace(
        cell,
        status=int(Status.STARTED),
        message=request.message,
        attempt=cell.attempt + 1,
        open=True,
        delivery=request.delivery,
        owner=request.owner,
        losses=cell.losses + int(superseded and request.counts_as_loss),
        kept=request.kept,
        blocked_by=None,
    )


def _written(cell: Cell, request: Write) -> Cell:
    status, message = request.status, request.message
    if request.keep_app_status and cell.open and cell.status < 0:
        status, message = cell.status, cell.message
    elif request.keep_app_status and message is None:
        message = cell.message
    is_open = cell.open and not request.ends_attempt
    over = not is_open and (status < 0 or status == FINISHED)
    return replace(
        cell,
        status=status,
        message=message,
        payload=_merged(cell.payload, request, status) if request.keep_payload else request.payload,
        open=is_open,
        delivery=request.next_delivery or cell.delivery,
        owner=cell.owner if is_open else None,
        losses=cell.losses + int(request.counts_as_loss),
        kept=None if over else cell.kept,
        blocked_by=None,
    )


def _merged(kept: str | None, request: Write, status: int) -> str | None:
    payload: dict[str, Any] | None = json.loads(kept) if kept else None
    if request.new_progress:
        payload = {**(payload or {}), "progress": json.loads(request.new_progress)}
    progress = (payload or {}).get("progress")
    if status == FINISHED and isinstance(progress, dict) and progress.keys() >= {"done", "total"}:
        payload = {**(payload or {}), "progress": {**progress, "done": progress["total"]}}
    return None if payload is None else json.dumps(payload)


def comparable(cell: Cell) -> Cell:
    """Return a cell without its times and with its payload decoded."""
    payload: Any = json.loads(cell.payload) if cell.payload else None
    return replace(cell, timestamp=0, began_at=0, payload=payload)
