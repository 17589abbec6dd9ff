"""``celery -A proj resume-state JOB``: end the pause of a job."""

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
    run_option,
    store_option,
)
from celery_statemanager.cli.control import report_change
from celery_statemanager.cli.rendering.lines import Output

_HELP = f"""End the pause of a job.

The next sweep of a worker or of beat publishes what was held back. Run
sweep-state to publish it at once.

\b
Examples:
  celery -A proj resume-state etl-44
  celery resume-state etl-44 --store sqlite:///states.db

\b
Exit status:
    0  resumed
    1  not changed: the job is not paused
{EXITS}"""


@click.command("resume-state", cls=CeleryCommand, help=_HELP, short_help="End the pause of a job.")
@job_argument
@run_option
@format_option
@store_option
@click.pass_context
@handle_preload_options
def resume_state(ctx: click.Context, /, job_id: str, run_token: str | None, style: str, store_url: str | None) -> None:
    """End the pause of a job."""
    with interruptible(), opened_store(ctx.obj.app, store_url) as store:
        job = find_job(store, job_id, run_token)
        if not completion.resume(store, job.ref):
            fail(f"job {job.job_id!r} was not resumed: it is not paused", Exit.FAILED)
        report_change(Output(no_color=ctx.obj.no_color), job, "resumed", style)
