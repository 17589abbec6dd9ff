"""``celery -A proj rerun-state JOB``: rerun the rows of a job that failed."""

from __future__ import annotations

from typing import Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options

from celery_statemanager.cli.common import (
    EXITS,
    Exit,
    fail,
    find_job,
    format_option,
    interruptible,
    job_argument,
    opened_store,
    option,
    run_option,
)
from celery_statemanager.cli.rendering import formatting
from celery_statemanager.cli.rendering.jobs import name
from celery_statemanager.cli.rendering.lines import Output
from celery_statemanager.cli.rendering.text import Span
from celery_statemanager.codec import compact
from celery_statemanager.errors import truncate
from celery_statemanager.generations import RerunReport, choose_rows
from celery_statemanager.indexset import IndexSet
from celery_statemanager.integration.app import StateManager
from celery_statemanager.integration.outbox.rerun import FAILED_ROWS, check_rerunnable, requested_rows, rerun
from celery_statemanager.records import JobRecord

_HELP = f"""Rerun the rows of a job that have ended without success.

Rows that have finished, are running or are waiting to begin are skipped. The job
gets a new generation with callbacks of its own. A chain starts again at the
stage that failed. Rows of a cancelled job that are not chosen stay cancelled. A
sweep completes a rerun that is interrupted.

\b
Examples:
  celery -A proj rerun-state etl-45
  celery -A proj rerun-state etl-45 --rows 3,17-20
  celery -A proj rerun-state etl-45 --dry-run

\b
Exit status:
    0  rows are rerun (with --dry-run: would be rerun)
    1  no row was rerun, or the messages of the job are not stored
{EXITS}"""


@click.command("rerun-state", cls=CeleryCommand, help=_HELP, short_help="Rerun the rows that failed.")
@job_argument
@run_option
@option(
    "--rows",
    default=FAILED_ROWS,
    show_default=True,
    help="The rows to rerun: numbers, or all that have ended without success.",
    metavar="failed|3,17-20",
    group="Rerun",
)
@option("--dry-run", is_flag=True, help="Only show which rows would be rerun.", group="Rerun")
@format_option
@click.pass_context
@handle_preload_options
def rerun_state(
    ctx: click.Context, /, job_id: str, run_token: str | None, rows: str, dry_run: bool, style: str
) -> None:
    """Rerun rows."""
    with interruptible(), opened_store(ctx.obj.app, None) as store:
        job = find_job(store, job_id, run_token)
        requested = _requested(job, rows)
        if dry_run:
            report, generation = choose_rows(store, job.ref, requested), job.generation.number
        else:
            ctx.obj.app.loader.import_default_modules()  # a callback is sent only if its task is registered
            report = rerun(StateManager(ctx.obj.app), job, rows)
            generation = find_job(store, job_id, run_token).generation.number
        output = Output(no_color=ctx.obj.no_color)
        if style == "json":
            output.record(compact(_wire(job, report, generation, dry_run=dry_run)))
        elif report.rows:
            output.line([Span(_text(name(job, output.glyphs), report, generation, dry_run=dry_run))])
        if not report.rows:
            why = "none of these rows has ended without success"
            fail(f"job {job.job_id!r} was not rerun: {why}{_skipped(report)}", Exit.FAILED)


def _requested(job: JobRecord, rows: str) -> IndexSet | None:
    try:
        check_rerunnable(job)
    except ValueError as error:
        fail(str(error), Exit.FAILED)
    try:
        return requested_rows(job, rows)
    except ValueError as error:
        fail(f"--rows: {error}", Exit.USAGE)


def _text(job: str, report: RerunReport, generation: int, *, dry_run: bool) -> str:
    count, rows = formatting.counted(len(report.rows), "row"), truncate(str(report.rows))
    verb = f"would rerun {count} of {job}" if dry_run else f"rerunning {count} of {job} as generation {generation}"
    return f"{verb}: {rows}{_skipped(report)}"


def _skipped(report: RerunReport) -> str:
    if not report.skipped:
        return ""
    count = formatting.counted(len(report.skipped), "row")
    return f"; skipped {count} (finished, running or waiting): {truncate(str(report.skipped))}"


def _wire(job: JobRecord, report: RerunReport, generation: int, *, dry_run: bool) -> dict[str, Any]:
    return {
        "jobID": job.job_id,
        "runToken": job.run_token,
        "generation": generation,
        "rows": str(report.rows),
        "skipped": str(report.skipped),
        "dryRun": dry_run,
    }
