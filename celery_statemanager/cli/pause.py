"""``celery -A proj pause-state JOB``: hold back the rows of a job that have not begun."""

from __future__ import annotations

from typing import Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options

from celery_statemanager import completion
from celery_statemanager.cli.common import EXITS, format_option, job_argument, option, run_option, store_option
from celery_statemanager.cli.control import apply_change, checked_reason

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
def pause_state(ctx: click.Context, /, reason: str | None, **given: Any) -> None:
    """Pause a job."""
    apply_change(
        ctx,
        lambda store, ref: completion.pause(store, ref, checked_reason(reason)),
        "paused",
        "it has settled, was cancelled or is paused, or owns no messages",
        **given,
    )
