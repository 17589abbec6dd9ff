"""A model of one job in dicts: an independent implementation of the rules, with which stores are compared."""

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
class JobModel:
    """The expected content of a job in a store.

    Attributes:
        history: every version of every cell; ``cells`` is the newest.
    """

    job: JobRecord
    cells: dict[Place, Cell] = field(default_factory=dict)
    history: dict[tuple[Place, int], Cell] = field(default_factory=dict)
    cancelled: bool = False
    reason: str | None = None
    tombstoned: bool = False
    fallen: set[str] = field(default_factory=set)

    @property
    def ref(self) -> JobRef:
        """The incarnation that this models."""
        return self.job.ref

    @property
    def expected(self) -> list[Place]:
        """The expected cells."""
        return naive.expected(self.job, (tag for tag, _ in self.cells))

    def cell(self, place: Place) -> Cell:
        """Return a cell, or an empty one if it was never written."""
        return self.cells.get(place, Cell())

    def reads(self, place: Place) -> tuple[int, str | None]:
        """Return the status and the message that readers see."""
        cell = self.cell(place)
        if self.cancelled and cell.status == 0 and not cell.open:
            return CANCELLED, self.reason
        return cell.status, cell.message

    def begin(self, request: Begin) -> Verdict:
        """Take an attempt, or say why not."""
        place = (request.tag, request.task_index)
        cell = self.cell(place)
        verdict = self._judge(cell, request)
        if verdict is Verdict.BEGUN:
            self._put(place, _taken(cell, request), request.event_id)
            self._free(place, request.event_id)
        elif verdict is Verdict.CANCELLED and not cell.open and 0 < cell.status < FINISHED:
            ended = replace(cell, status=CANCELLED, message=self.reason, kept=None)
            self._put(place, ended, request.event_id)
        self._decide(place)
        return verdict

    def write(self, request: Write) -> str:
        """Write a cell; give ``written``, ``same`` or the name of the error."""
        place = (request.tag, request.task_index)
        cell = self.cell(place)
        if cell.version and cell.event_id == request.event_id:
            return "same"
        attempt = request.attempt
        if request.begin is not None:
            verdict = self._judge(cell, request.begin, ignore_cancel=request.ends_attempt)
            if verdict is not Verdict.BEGUN:
                return "JobCancelled" if verdict is Verdict.CANCELLED else "BeginRefused"
            cell = _taken(cell, request.begin)
            attempt = cell.attempt
        if attempt not in (None, cell.attempt):
            return "AttemptSuperseded"
        ends = request.status < 0 or request.status == FINISHED
        untouched = cell.status == 0 and not cell.open
        if self.cancelled and not request.ends_attempt and (untouched or not ends):
            return "JobCancelled"
        self._put(place, _written(cell, request), request.event_id)
        if request.begin is not None:
            self._free(place, request.event_id)
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
        """Migrate every cell to the next layout."""
        self.cells = {
            place: replace(cell, schema_version=cell.schema_version + 1) for place, cell in self.cells.items()
        }

    def _judge(self, cell: Cell, request: Begin, *, ignore_cancel: bool = False) -> Verdict:
        rank = (request.delivery > cell.delivery) - (request.delivery < cell.delivery)
        first_true: list[tuple[Callable[[], bool], Verdict]] = [
            (lambda: cell.status == FINISHED and not cell.open, Verdict.FINISHED),
            (lambda: "settled" in self.fallen, Verdict.CLOSED),
            (lambda: self.cancelled and not ignore_cancel, Verdict.CANCELLED),
            (lambda: request.takes_over, Verdict.BEGUN),
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

    def _free(self, place: Place, event_id: str) -> None:
        for later in self._later(place):
            cell = self.cell(later)
            if cell.version and cell.blocked_by == place[0]:
                self._put(later, replace(cell, status=0, message=None, blocked_by=None), event_id)

    def _decide(self, place: Place | None) -> None:
        if self.job.plan is None or not (place is None or place in self.expected):
            return
        cells = [self.cell(each) for each in self.expected]
        final = [not cell.open and (cell.status < 0 or cell.status == FINISHED) for cell in cells]
        resting = not any(cell.open or 0 < cell.status < FINISHED for cell in cells)
        if resting if self.cancelled else all(final):
            self.fallen.add("settled")
        if all(is_final and cell.status == FINISHED for cell, is_final in zip(cells, final)):
            self.fallen.add("success")
        if any(is_final and cell.status < 0 and cell.status != CANCELLED for cell, is_final in zip(cells, final)):
            self.fallen.add("failure")


def _taken(cell: Cell, request: Begin) -> Cell:
    from_the_dead = cell.open and cell.owner is not None and request.supersedes == cell.attempt
    return replace(
        cell,
        status=int(Status.STARTED),
        message=request.message,
        attempt=cell.attempt + 1,
        open=True,
        delivery=request.delivery,
        owner=request.owner,
        losses=cell.losses + int(from_the_dead),
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


def short_repr(cell: Cell) -> Cell:
    """Return a cell as a tuple without its times, with its payload as a value."""
    payload: Any = json.loads(cell.payload) if cell.payload else None
    return replace(cell, timestamp=0, began_at=0, payload=payload)
