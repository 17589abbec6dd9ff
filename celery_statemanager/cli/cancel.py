"""``celery -A proj cancel-state JOB``: cancel a job."""

from __future__ import annotations

from typing import Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options

from celery_statemanager import completion
from celery_statemanager.cli.common import EXITS, format_option, job_argument, option, run_option, store_option
from celery_statemanager.cli.control import apply_change, checked_reason

_HELP = f"""Cancel a job.

Rows that have not begun do not run. A running task stops at its next write.
The next sweep publishes the callbacks that become due. Run sweep-state to
publish them at once.

\b
Examples:
  celery -A proj cancel-state etl-43 --reason "wrong input"
  celery cancel-state etl-43 --store sqlite:///states.db

\b
Exit status:
    0  cancelled
    1  not changed: the job has settled or was cancelled
{EXITS}"""


@click.command("cancel-state", cls=CeleryCommand, help=_HELP, short_help="Cancel a job.")
@job_argument
@run_option
@option("--reason", help="The reason, shown to readers.", metavar="TEXT", group="Cancellation")
@format_option
@store_option
@click.pass_context
@handle_preload_options
def cancel_state(ctx: click.Context, /, reason: str | None, **given: Any) -> None:
    """Cancel a job."""
    apply_change(
        ctx,
        lambda store, ref: completion.cancel(store, ref, checked_reason(reason)),
        "cancelled",
        "it has settled or was cancelled before",
        **given,
    )
