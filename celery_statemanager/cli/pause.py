"""``celery -A proj pause-state JOB``: hold back the rows of a job that have not begun."""

from __future__ import annotations

import click
from celery.bin.base import CeleryCommand, handle_preload_options

from celery_statemanager import completion
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
    store_option,
)
from celery_statemanager.cli.control import checked_reason, report_change
from celery_statemanager.cli.rendering.lines import Output

_HELP = f"""Hold back the rows of a job that have not begun.

Rows that have begun go on, with their retries and later stages. A message that
is already in a queue goes back to the job when a worker receives it. Rows of
plain tasks, which cannot drop a message, run in that case.

\b
Examples:
  celery -A proj pause-state etl-43 --reason deploying
  celery pause-state etl-43 --store sqlite:///states.db

\b
Exit status:
    0  paused
    1  not changed: the job has settled, was cancelled or is paused,
       or owns no messages
{EXITS}"""


@click.command("pause-state", cls=CeleryCommand, help=_HELP, short_help="Hold back rows that have not begun.")
@job_argument
@run_option
@option("--reason", help="The reason, shown to readers.", metavar="TEXT", group="Pause")
@format_option
@store_option
@click.pass_context
@handle_preload_options
def pause_state(
    ctx: click.Context, /, job_id: str, run_token: str | None, reason: str | None, style: str, store_url: str | None
) -> None:
    """Pause a job."""
    with interruptible(), opened_store(ctx.obj.app, store_url) as store:
        job = find_job(store, job_id, run_token)
        if not completion.pause(store, job.ref, checked_reason(reason)):
            why = "it has settled, was cancelled or is paused, or owns no messages"
            fail(f"job {job.job_id!r} was not paused: {why}", Exit.FAILED)
        report_change(Output(no_color=ctx.obj.no_color), job, "paused", style)
