"""``celery -A proj why-state JOB``: explain why a job is not done and what happens next."""

from __future__ import annotations

import click
from celery.bin.base import CeleryCommand, handle_preload_options

from celery_statemanager.cli.common import (
    EXITS,
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
from celery_statemanager.explain import JobDiagnosis, Reason
from celery_statemanager.inspection import reason_to_wire
from celery_statemanager.records import JobRecord, split_latch

WIDEST = 110
"""Maximum width of a sentence in columns."""

MOST_LINES = 6
MOST_RANGES = 200
"""Maximum length of the row ranges of one reason; ``--format json`` has all of them."""

_INDENT = "      "

_HELP = f"""Explain why a job is not done: which tasks, on which worker, and what happens next.

\b
Examples:
  celery -A proj why-state etl-42
  celery -A proj why-state etl-42 --format json | jq -r .text
  celery why-state etl-42 --store sqlite:///states.db

\b
Exit status:
    0  explained, whether or not the job is done
{EXITS}"""


@click.command("why-state", cls=CeleryCommand, help=_HELP, short_help="Explain why a job is not done.")
@job_argument
@run_option
@format_option
@store_option
@click.pass_context
@handle_preload_options
def why_state(ctx: click.Context, /, job_id: str, run_token: str | None, style: str, store_url: str | None) -> None:
    """Explain a job."""
    with interruptible(), opened_store(ctx.obj.app, store_url) as store:
        output = Output(no_color=ctx.obj.no_color)
        diagnosis = JobDiagnosis(store, find_job(store, job_id, run_token).ref)
        reasons = diagnosis.reasons()
        if style == "json":
            for each in reasons:
                output.record(compact(reason_to_wire(each)))
            return
        columns, glyphs = output.size.columns, output.glyphs
        for line in _headline(diagnosis, reasons, columns, glyphs):
            output.line(line)
        for each in reasons:
            for line in _lines(diagnosis.job, each, columns, glyphs):
                output.line(line)


def _verdict(diagnosis: JobDiagnosis, reasons: list[Reason]) -> str:
    job = diagnosis.job
    cancelled = f"cancelled ({clean(job.cancelled.reason or 'no reason given')}), " if job.cancelled else ""
    if job.settled:
        return f"{cancelled}settled" + (", but a callback has not finished:" if reasons else ", no cell is open")
    not_settled = f"{cancelled}not settled"
    if job.policy.deadline is not None and not job.cancelled:
        left = (job.policy.deadline - diagnosis.now) / 1e6
        not_settled += f", deadline {formatting.deadline(left)}"
    if not reasons:
        return f"{not_settled}, but no cell is open: it has no plan, or is settling now"
    count = sum(len(each.rows or ()) for each in reasons)
    return f"{not_settled}, {formatting.counted(count, 'cell')} open:"


def _headline(diagnosis: JobDiagnosis, reasons: list[Reason], columns: int, glyphs: Glyphs) -> list[Line]:
    """Return the name and the verdict, on two lines if they do not fit on one."""
    label, verdict = name(diagnosis.job, glyphs), _verdict(diagnosis, reasons)
    if width(label) + 2 + width(verdict) <= columns:
        return [[Span(label, "head"), Span(f": {verdict}")]]
    return [[Span(fit(label, columns, glyphs.ellipsis), "head")], *_wrapped(verdict, "", columns, glyphs)]


def _lines(job: JobRecord, reason: Reason, columns: int, glyphs: Glyphs) -> list[Line]:
    if reason.rows is None:
        _, number = split_latch(reason.tag)
        label = job.label(reason.tag)
        where = f"{label}, generation {number}" if number else label
    else:
        tag = fit(clean(reason.tag), columns // 2, glyphs.ellipsis)
        where = f"{tag}  {formatting.ranges(reason.rows, MOST_RANGES, glyphs.ellipsis)}"
    return _wrapped(f"{where}: {clean(reason.text)}", "bad" if reason.code == "lost" else "", columns, glyphs)


def _wrapped(text: str, style: str, columns: int, glyphs: Glyphs) -> list[Line]:
    first, *others = wrapped(text, min(columns, WIDEST) - len(_INDENT), MOST_LINES, glyphs.ellipsis)
    return [[Span(f"  {first}", style)], *([Span(_INDENT + each, style)] for each in others)]
