"""Read everything about one job, and return it as JSON objects, for commands and the web."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from itertools import islice
from typing import Any

from celery_statemanager import aggregate
from celery_statemanager.codec import job_to_wire, moment_to_wire, state_of, summary_to_wire
from celery_statemanager.explain import Reason
from celery_statemanager.failures import FailureGroup, FailureReport, group_failures
from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import State, status_name
from celery_statemanager.overview import Overview, overview
from celery_statemanager.records import CALLBACK_ROW, Cell, JobRecord, Latch, OutboxState, to_datetime
from celery_statemanager.stores import Outbox, Store

MOST_FAILED = 200
"""Failed cells, and cells that were not run, that are read to group them by cause, unless more are requested."""


@dataclass(frozen=True, slots=True)
class Callback:
    """One of a job's latches and its callback.

    Attributes:
        task: the name of the callback's task; None without a callback.
        cell: the cell of its task; None until it has begun.
    """

    latch: Latch
    task: str | None
    cell: Cell | None


@dataclass(frozen=True, slots=True)
class JobView:
    """The data of one job for commands and the web.

    Attributes:
        callbacks: by the latch's name.
        states: of some cells, failed ones first, for programs.
        running: of some running cells.
        hidden: the number of failed and running cells that are not among them.
        failures: failed cells by cause; not all cells, if there are many.
        now: the time of the store's clock when the job was read.
        outbox: which rows were published; None for a job without messages.
    """

    overview: Overview
    callbacks: dict[str, Callback]
    states: list[State] = field(default_factory=list)
    running: list[State] = field(default_factory=list)
    hidden: int = 0
    failures: FailureReport = field(default_factory=lambda: FailureReport([]))
    now: datetime = datetime.min.replace(tzinfo=timezone.utc)
    outbox: OutboxState | None = None

    @property
    def in_flight(self) -> int:
        """The number of rows that are published and have not ended."""
        return 0 if self.outbox is None else self.outbox.in_flight(self.overview.columns)


def overview_to_wire(shown: Overview) -> dict[str, Any]:
    """Return a job and its counts as a JSON object."""
    settled = aggregate.settled(shown.job, shown.columns)  # also without a plan
    job = {**job_to_wire(shown.job), "settled": settled}
    return {**job, "phase": shown.phase.value, **summary_to_wire(shown.summary)}


def reason_to_wire(reason: Reason) -> dict[str, str | None]:
    """Return a reason why a job has not settled as a JSON object."""
    rows = None if reason.rows is None else str(reason.rows)
    return {"tag": reason.tag, "taskIDs": rows, "code": reason.code, "text": reason.text}


def read_job(store: Outbox, job: JobRecord, limit: int = 0, most_grouped: int = MOST_FAILED) -> JobView:
    """Read everything about one job.

    Args:
        limit: the maximum number of failed and running cells in ``states`` and ``running``.
        most_grouped: the number of failed cells to group by cause; at least ``limit``.

    Raises: JobNotFound, StoreError.
    """
    shown = overview(store, job.ref, indexes=True)
    callbacks = {name: _callback(store, shown.job, name) for name in shown.job.latches}
    most = max(limit, most_grouped)
    failed = [_state(store, shown.job, *each) for each in islice(_cells(shown, "failed"), most)]
    running = [_state(store, shown.job, *each) for each in islice(_cells(shown, "running"), limit)]
    count = _count(shown, "failed") + _count(shown, "running")
    return JobView(
        shown,
        callbacks,
        [*failed, *running][:limit],
        running,
        max(0, count - limit),
        _grouped(store, shown, failed, most_grouped),
        to_datetime(store.now()),
        None if shown.job.flow is None else store.get_outbox(shown.job.ref),
    )


def _cells(shown: Overview, kind: str) -> Iterator[tuple[str, int]]:
    """Yield the cells of a class: ``failed``, ``running`` or ``not_run``. Cells that a cancellation ended come last."""
    for column in shown.columns:
        yield from ((column.tag, row) for row in getattr(column, kind) or ())
    for column, rows in zip(shown.columns, _rows(shown, kind)):
        yield from ((column.tag, row) for row in rows.without(getattr(column, kind) or IndexSet()))


def _rows(shown: Overview, kind: str) -> Iterator[IndexSet]:
    """Yield the rows of each column whose cell is of a class, as readers see it."""
    for summary in shown.tags.values():
        yield getattr(summary, f"{kind}_indexes") or IndexSet()


def _count(shown: Overview, kind: str) -> int:
    return sum(map(len, _rows(shown, kind)))


def _grouped(store: Store, shown: Overview, failed: list[State], most: int) -> FailureReport:
    """Group failed cells by cause, together with the first cells that were not run; the others are only counted."""
    not_run = islice(_cells(shown, "not_run"), most)
    blocked = [_state(store, shown.job, *each) for each in not_run]
    report = group_failures([*failed, *blocked])
    return replace(
        report,
        other_failed=report.other_failed + max(0, _count(shown, "failed") - len(failed)),
        other_not_run=report.other_not_run + max(0, _count(shown, "not_run") - len(blocked)),
    )


def _state(store: Store, job: JobRecord, tag: str, row: int) -> State:
    return aggregate.visible_state(job, tag, row, store.get_cell(job.ref, tag, row))


def _callback(store: Store, job: JobRecord, name: str) -> Callback:
    latch = job.latches[name]
    task = None if latch.callback is None else str(json.loads(latch.callback).get("task"))
    cell = store.get_cell(job.ref, job.callback_tag(name), CALLBACK_ROW) if task and latch.decided_at else None
    return Callback(latch, task, cell)


def view_to_wire(view: JobView) -> dict[str, Any]:
    """Return everything about one job as a JSON object."""
    shown = view.overview
    return {
        **overview_to_wire(shown),
        "tags": {tag: summary_to_wire(summary) for tag, summary in shown.tags.items()},
        "outbox": _outbox_wire(view),
        "callbacks": {name: _callback_wire(shown.job, name, each) for name, each in view.callbacks.items()},
        "failures": [_failure_wire(group) for group in view.failures.groups],
        "otherFailed": view.failures.other_failed,
        "otherNotRun": view.failures.other_not_run,
        "states": [state.as_dict() for state in view.states],
        "statesHidden": view.hidden,
    }


def _outbox_wire(view: JobView) -> dict[str, Any] | None:
    flow, outbox = view.overview.job.flow, view.outbox
    if flow is None or outbox is None:
        return None
    return {
        "published": outbox.claimed,
        "inFlight": view.in_flight,
        "maxInFlight": flow.max_in_flight,
        "paused": flow.paused,
        "pauseReason": flow.pause_reason,
    }


def _failure_wire(group: FailureGroup) -> dict[str, Any]:
    return {
        "tag": group.cause.tag,
        "status": group.cause.status,
        "statusName": status_name(group.cause.status),
        "message": group.text or None,
        "count": group.rows.count,
        "taskIDs": str(group.rows.first),
        "notRun": {tag: str(rows.first) for tag, rows in group.not_run.items()},
        "notRunCount": group.not_run_count,
    }


def _callback_wire(job: JobRecord, name: str, each: Callback) -> dict[str, Any]:
    state = each.cell and state_of(job.job_id, job.callback_tag(name), CALLBACK_ROW, each.cell).as_dict()
    return {
        "task": each.task,
        "decidedAt": moment_to_wire(each.latch.decided_at),
        "publishedAt": moment_to_wire(each.latch.published_at),
        "state": state,
    }
