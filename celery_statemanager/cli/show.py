"""``celery -A proj show-state JOB``: everything about one job."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options

from celery_statemanager.cli.common import (
    find_job,
    format_option,
    interruptible,
    job_argument,
    opened_store,
    option,
    run_option,
    store_option,
)
from celery_statemanager.cli.rendering.job_view import Callback, Card, card_lines
from celery_statemanager.cli.rendering.lines import Output
from celery_statemanager.codec import compact, job_to_wire, moment_to_wire, state_of, state_to_wire, summary_to_wire
from celery_statemanager.models import State
from celery_statemanager.overview import Overview, overview
from celery_statemanager.records import CALLBACK_ROW, JobRecord, to_datetime
from celery_statemanager.stores import Store

_HELP = """Show everything about one job: counts, submission, cancellation, callbacks, and rows, failed ones first.

\b
Examples:
  celery -A proj show-state etl-42
  celery -A proj show-state etl-42 --run-token 2026-11-24 --limit 500
  celery -A proj show-state etl-42 --format json | jq .tags.export.failedIDs
  celery show-state etl-42 --store sqlite:///states.db

\b
Exit status:
    0  shown
    2  wrong use
   66  no such job
   69  the store cannot be reached
   74  the output cannot be written
   78  the store's URL or a setting is wrong, or its file is not there
  130  ended by Ctrl-C
"""


@click.command("show-state", cls=CeleryCommand, help=_HELP, short_help="Show everything about one job.")
@job_argument
@run_option
@option(
    "--limit",
    type=click.IntRange(0),
    metavar="N",
    default=20,
    show_default=True,
    help="At most so many rows.",
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
        outlet = Output(no_color=ctx.obj.no_color)
        card = _card(store, find_job(store, job_id, run_token), limit)
        if style == "json":
            outlet.record(compact(_wire(card)))
            return
        for line in card_lines(card, outlet.size.columns, outlet.glyphs):
            outlet.line(line)


def _card(store: Store, job: JobRecord, limit: int) -> Card:
    shown = overview(store, job.ref, indexes=True)
    callbacks = {name: _callback(store, shown.job, name) for name in shown.job.latches}
    states = [state for each in islice(_telling(shown), limit) for state in _state(store, shown.job, *each)]
    hidden = sum(len(column.failed or ()) + len(column.running or ()) for column in shown.columns) - limit
    return Card(shown, callbacks, states, max(0, hidden), to_datetime(store.now()))


def _telling(shown: Overview) -> Iterator[tuple[str, int]]:
    """Give the cells that say most: failed ones, then running ones."""
    for kind in ("failed", "running"):
        for column in shown.columns:
            yield from ((column.tag, row) for row in getattr(column, kind) or ())


def _state(store: Store, job: JobRecord, tag: str, row: int) -> Iterator[State]:
    cell = store.get_cell(job.ref, tag, row)
    if cell is not None:
        yield state_of(job.job_id, tag, row, cell)


def _callback(store: Store, job: JobRecord, name: str) -> Callback:
    latch = job.latches[name]
    task = None if latch.callback is None else str(json.loads(latch.callback).get("task"))
    return Callback(latch, task, store.get_cell(job.ref, name, CALLBACK_ROW) if task and latch.decided_at else None)


def _wire(card: Card) -> dict[str, Any]:
    shown, submission = card.overview, card.overview.job.submission
    return {
        **job_to_wire(shown.job),
        "phase": shown.phase.value,
        **summary_to_wire(shown.summary),
        "tags": {tag: summary_to_wire(summary) for tag, summary in shown.tags.items()},
        "submission": submission
        and {
            "published": submission.published,
            "done": submission.done,
            "aliveUntil": moment_to_wire(submission.alive_until),
        },
        "callbacks": {name: _callback_wire(shown.job, name, each) for name, each in card.callbacks.items()},
        "states": [state_to_wire(state) for state in card.states],
        "statesHidden": card.hidden,
    }


def _callback_wire(job: JobRecord, name: str, each: Callback) -> dict[str, Any]:
    state = each.cell and state_to_wire(state_of(job.job_id, name, CALLBACK_ROW, each.cell))
    return {
        "task": each.task,
        "decidedAt": moment_to_wire(each.latch.decided_at),
        "publishedAt": moment_to_wire(each.latch.published_at),
        "state": state,
    }
