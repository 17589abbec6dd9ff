"""``celery -A proj show-state JOB``: show everything about one job."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options

from celery_statemanager.aggregate import visible_state
from celery_statemanager.cli.common import (
    EXITS,
    find_job,
    format_option,
    interruptible,
    job_argument,
    opened_store,
    option,
    run_option,
    store_option,
)
from celery_statemanager.cli.rendering.job_view import Callback, JobView, job_lines
from celery_statemanager.cli.rendering.lines import Output
from celery_statemanager.codec import compact, job_to_wire, moment_to_wire, state_of, summary_to_wire
from celery_statemanager.failures import FailureGroup, FailureReport, group_failures
from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import State
from celery_statemanager.overview import Overview, overview
from celery_statemanager.records import CALLBACK_ROW, JobRecord, to_datetime
from celery_statemanager.stores import Outbox, Store

MOST_FAILED = 200
"""Number of failed cells that are read to group them by cause, unless ``--limit`` is higher."""

_HELP = f"""Show everything about one job: counts, published rows, callbacks, failures by cause, running rows.

\b
Examples:
  celery -A proj show-state etl-42
  celery -A proj show-state etl-42 --run-token 2026-11-24 --limit 500
  celery -A proj show-state etl-42 --format json | jq .tags.export.failedIDs
  celery show-state etl-42 --store sqlite:///states.db

\b
Exit status:
    0  shown
{EXITS}"""


@click.command("show-state", cls=CeleryCommand, help=_HELP, short_help="Show everything about one job.")
@job_argument
@run_option
@option(
    "--limit",
    type=click.IntRange(0),
    metavar="N",
    default=20,
    show_default=True,
    help="Maximum number of running rows; with --format json, of failed and running rows.",
    group="Output",
)
@format_option
@store_option
@click.pass_context
@handle_preload_options
def show_state(
    ctx: click.Context, /, job_id: str, run_token: str | None, limit: int, style: str, store_url: str | None
) -> None:
    """Show a job."""
    with interruptible(), opened_store(ctx.obj.app, store_url) as store:
        output = Output(no_color=ctx.obj.no_color)
        view = _read(store, find_job(store, job_id, run_token), limit)
        if style == "json":
            output.record(compact(_wire(view)))
            return
        for line in job_lines(view, output.size.columns, output.glyphs):
            output.line(line)


def _read(store: Outbox, job: JobRecord, limit: int) -> JobView:
    shown = overview(store, job.ref, indexes=True)
    callbacks = {name: _callback(store, shown.job, name) for name in shown.job.latches}
    most = max(limit, MOST_FAILED)
    failed = [_state(store, shown.job, *each) for each in islice(_cells(shown, "failed"), most)]
    running = [_state(store, shown.job, *each) for each in islice(_cells(shown, "running"), limit)]
    count = _count(shown, "failed") + _count(shown, "running")
    return JobView(
        shown,
        callbacks,
        [*failed, *running][:limit],
        running,
        max(0, count - limit),
        _grouped(store, shown, failed),
        to_datetime(store.now()),
        None if shown.job.flow is None else store.get_outbox(shown.job.ref),
    )


def _cells(shown: Overview, kind: str) -> Iterator[tuple[str, int]]:
    """Yield the cells of a class, ``failed``, ``running`` or ``not_run``; those that a cancellation ended last."""
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


def _grouped(store: Store, shown: Overview, failed: list[State]) -> FailureReport:
    """Group failed cells by cause, together with the first cells that were not run; the others are only counted."""
    not_run = islice(_cells(shown, "not_run"), MOST_FAILED)
    blocked = [_state(store, shown.job, *each) for each in not_run]
    report = group_failures([*failed, *blocked])
    return replace(
        report,
        other_failed=report.other_failed + max(0, _count(shown, "failed") - len(failed)),
        other_not_run=report.other_not_run + max(0, _count(shown, "not_run") - len(blocked)),
    )


def _state(store: Store, job: JobRecord, tag: str, row: int) -> State:
    return visible_state(job, tag, row, store.get_cell(job.ref, tag, row))


def _callback(store: Store, job: JobRecord, name: str) -> Callback:
    latch = job.latches[name]
    task = None if latch.callback is None else str(json.loads(latch.callback).get("task"))
    cell = store.get_cell(job.ref, job.callback_tag(name), CALLBACK_ROW) if task and latch.decided_at else None
    return Callback(latch, task, cell)


def _wire(view: JobView) -> dict[str, Any]:
    shown = view.overview
    return {
        **job_to_wire(shown.job),
        "phase": shown.phase.value,
        **summary_to_wire(shown.summary),
        "tags": {tag: summary_to_wire(summary) for tag, summary in shown.tags.items()},
        "outbox": _outbox_wire(view),
        "callbacks": {name: _callback_wire(shown.job, name, each) for name, each in view.callbacks.items()},
        "failures": [_failure_wire(group) for group in view.failures.groups],
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
        "message": group.text or None,
        "taskIDs": str(group.rows.first),
        "notRun": {tag: str(rows.first) for tag, rows in group.not_run.items()},
    }


def _callback_wire(job: JobRecord, name: str, each: Callback) -> dict[str, Any]:
    state = each.cell and state_of(job.job_id, job.callback_tag(name), CALLBACK_ROW, each.cell).as_dict()
    return {
        "task": each.task,
        "decidedAt": moment_to_wire(each.latch.decided_at),
        "publishedAt": moment_to_wire(each.latch.published_at),
        "state": state,
    }
