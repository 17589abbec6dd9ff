"""``celery -A proj rerun-state JOB``: run the rows of a job again that failed."""

from __future__ import annotations

from typing import Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options

from celery_statemanager import rerun
from celery_statemanager.cli.common import (
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
from celery_statemanager.integration.app import StateManager
from celery_statemanager.integration.outbox.rerun import FAILED, rerun_rows, wanted_rows
from celery_statemanager.records import JobRecord
from celery_statemanager.rerun import RerunReport

_HELP = """Run the rows of a job again that have ended without success.

Rows that have finished, run or wait to begin are skipped. The job gets a new
generation, in which its callbacks are called again. A chain runs again from the
stage that failed. Rows of a cancelled job that are not chosen stay cancelled.

\b
Examples:
  celery -A proj rerun-state etl-45
  celery -A proj rerun-state etl-45 --rows 3,17-20
  celery -A proj rerun-state etl-45 --dry-run

\b
Exit status:
    0  rows run again (with --dry-run: would run again)
    1  nothing to run again
    2  usage error, or the messages of the job are not stored
   66  no such job
   69  the store is unavailable; a sweep completes a rerun that has begun
   74  the output cannot be written
   78  invalid store URL or setting, or the store's file does not exist
  130  interrupted by Ctrl-C; a sweep completes a rerun that has begun
"""


@click.command("rerun-state", cls=CeleryCommand, help=_HELP, short_help="Run rows again that failed.")
@job_argument
@run_option
@option("--rows", default=FAILED, show_default=True, help="The wanted rows.", metavar="failed|3,17-20", group="Rerun")
@option("--dry-run", is_flag=True, help="Only show which rows would run again.", group="Rerun")
@format_option
@click.pass_context
@handle_preload_options
def rerun_state(
    ctx: click.Context, /, job_id: str, run_token: str | None, rows: str, dry_run: bool, style: str
) -> None:
    """Run rows again."""
    with interruptible(), opened_store(ctx.obj.app, None) as store:
        job = find_job(store, job_id, run_token)
        try:
            wanted = wanted_rows(job, rows)
        except ValueError as error:
            fail(str(error), Exit.USAGE)
        if dry_run:
            report, generation = rerun.choose(store, job.ref, wanted), job.generation.number
        else:
            ctx.obj.app.loader.import_default_modules()  # a callback is sent only if its task is registered
            report = rerun_rows(StateManager(ctx.obj.app), job, rows)
            generation = find_job(store, job_id, run_token).generation.number
        output = Output(no_color=ctx.obj.no_color)
        if style == "json":
            output.record(compact(_wire(job, report, generation, dry_run=dry_run)))
        elif report.rows:
            output.line([Span(_text(name(job, output.glyphs), report, generation, dry_run=dry_run))])
        if not report.rows:
            fail(f"job {job.job_id!r} has nothing to run again{_skipped(report)}", Exit.FAILED)


def _text(job: str, report: RerunReport, generation: int, *, dry_run: bool) -> str:
    count, rows = formatting.counted(len(report.rows), "row"), truncate(str(report.rows))
    verb = f"would rerun {count} of {job}" if dry_run else f"rerun {count} of {job} as generation {generation}"
    return f"{verb}: {rows}{_skipped(report)}"


def _skipped(report: RerunReport) -> str:
    if not report.skipped:
        return ""
    count = formatting.counted(len(report.skipped), "row")
    return f"; skipped {count} that finished, run or wait: {truncate(str(report.skipped))}"


def _wire(job: JobRecord, report: RerunReport, generation: int, *, dry_run: bool) -> dict[str, Any]:
    return {
        "jobID": job.job_id,
        "runToken": job.run_token,
        "generation": generation,
        "rows": str(report.rows),
        "skipped": str(report.skipped),
        "dryRun": dry_run,
    }
