"""``celery -A proj resume-state JOB``: end the pause of a job."""

from __future__ import annotations

from typing import Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options

from celery_statemanager import completion
from celery_statemanager.cli.common import EXITS, format_option, job_argument, run_option, store_option
from celery_statemanager.cli.control import apply_change

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
def resume_state(ctx: click.Context, /, **given: Any) -> None:
    """End the pause of a job."""
    apply_change(ctx, completion.resume, "resumed", "it is not paused", **given)
