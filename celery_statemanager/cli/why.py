"""``celery -A proj why-state JOB``: why is it not done, and what happens next."""

from __future__ import annotations

import click
from celery.bin.base import CeleryCommand, handle_preload_options

from celery_statemanager.cli.common import (
    find_job,
    format_option,
    interruptible,
    job_argument,
    opened_store,
    run_option,
    store_option,
)
from celery_statemanager.cli.rendering import formatting
from celery_statemanager.cli.rendering.jobs import name
from celery_statemanager.cli.rendering.lines import Output
from celery_statemanager.cli.rendering.text import Glyphs, Line, Span, clean, fit, width, wrapped
from celery_statemanager.codec import compact
from celery_statemanager.explain import Reason, explain
from celery_statemanager.records import JobRecord
from celery_statemanager.retention import current

WIDEST = 110
"""Columns beyond which a sentence is hard to read."""

MOST_LINES = 6
MOST_RANGES = 200
"""Characters of ranges shown for one reason; ``--format json`` has all."""

_INDENT = "      "

_HELP = """Say why a job is not done: which tasks, on which worker, and what happens next.

\b
Examples:
  celery -A proj why-state etl-42
  celery -A proj why-state etl-42 --format json | jq -r .text
  celery why-state etl-42 --store sqlite:///states.db

\b
Exit status:
    0  told, whether or not the job is done
    2  wrong use
   66  no such job
   69  the store cannot be reached
   74  the output cannot be written
   78  the store's URL or a setting is wrong, or its file is not there
  130  ended by Ctrl-C
"""


@click.command("why-state", cls=CeleryCommand, help=_HELP, short_help="Say why a job is not done.")
@job_argument
@run_option
@format_option
@store_option
@click.pass_context
@handle_preload_options
def why_state(ctx: click.Context, /, job_id: str, run_token: str | None, style: str, store_url: str | None) -> None:
    """Explain a job."""
    with interruptible(), opened_store(ctx.obj.app, store_url) as store:
        outlet = Output(no_color=ctx.obj.no_color)
        job = find_job(store, job_id, run_token)
        reasons = explain(store, job)
        if style == "json":
            for each in reasons:
                outlet.record(compact(_wire(each)))
            return
        columns, glyphs = outlet.size.columns, outlet.glyphs
        for line in _headline(current(store, job.ref), reasons, columns, glyphs):
            outlet.line(line)
        for each in reasons:
            for line in _lines(each, columns, glyphs):
                outlet.line(line)


def _wire(reason: Reason) -> dict[str, str | None]:
    rows = None if reason.rows is None else str(reason.rows)
    return {"tag": reason.tag, "taskIDs": rows, "code": reason.code, "text": reason.text}


def _verdict(job: JobRecord, reasons: list[Reason]) -> str:
    cancelled = f"cancelled ({clean(job.cancelled.reason or 'no reason given')}), " if job.cancelled else ""
    if job.settled:
        return f"{cancelled}settled" + (", but a callback has not finished:" if reasons else ", nothing is open")
    if not reasons:
        return f"{cancelled}not settled, and nothing is open: it has no plan, or ends this moment"
    count = sum(len(each.rows or ()) for each in reasons)
    return f"{cancelled}not settled, {formatting.counted(count, 'cell')} open:"


def _headline(job: JobRecord, reasons: list[Reason], columns: int, glyphs: Glyphs) -> list[Line]:
    """Give name and verdict, the verdict below the name where both do not fit."""
    named, verdict = name(job, glyphs), _verdict(job, reasons)
    if width(named) + 2 + width(verdict) <= columns:
        return [[Span(named, "head"), Span(f": {verdict}")]]
    return [[Span(fit(named, columns, glyphs.ellipsis), "head")], *_broken(verdict, "", columns, glyphs)]


def _lines(reason: Reason, columns: int, glyphs: Glyphs) -> list[Line]:
    if reason.rows is None:
        where = f"on_{reason.tag}"
    else:
        tag = fit(clean(reason.tag), columns // 2, glyphs.ellipsis)
        where = f"{tag}  {formatting.ranges(reason.rows, MOST_RANGES, glyphs.ellipsis)}"
    return _broken(f"{where}: {clean(reason.text)}", "bad" if reason.code == "lost" else "", columns, glyphs)


def _broken(text: str, style: str, columns: int, glyphs: Glyphs) -> list[Line]:
    first, *others = wrapped(text, min(columns, WIDEST) - len(_INDENT), MOST_LINES, glyphs.ellipsis)
    return [[Span(f"  {first}", style)], *([Span(_INDENT + each, style)] for each in others)]
