"""``celery -A proj cancel-state JOB``: cancel a job."""

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
def cancel_state(
    ctx: click.Context, /, job_id: str, run_token: str | None, reason: str | None, style: str, store_url: str | None
) -> None:
    """Cancel a job."""
    with interruptible(), opened_store(ctx.obj.app, store_url) as store:
        job = find_job(store, job_id, run_token)
        if not completion.cancel(store, job.ref, checked_reason(reason)):
            fail(f"job {job.job_id!r} was not cancelled: it has settled or was cancelled before", Exit.FAILED)
        report_change(Output(no_color=ctx.obj.no_color), job, "cancelled", style)
