"""``celery -A proj show-state JOB``: show everything about one job."""

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
    option,
    run_option,
    store_option,
)
from celery_statemanager.cli.rendering.job_view import job_lines
from celery_statemanager.cli.rendering.lines import Output
from celery_statemanager.codec import compact
from celery_statemanager.inspection import read_job, view_to_wire

_HELP = f"""Show everything about one job: counts, published rows, callbacks, failures by cause, running rows.

\b
Examples:
  celery -A proj show-state etl-42
  celery -A proj show-state etl-42 --run-token 2026-11-24 --limit 500
  celery -A proj show-state etl-42 --format json | jq .tags.export.failedIDs
  celery show-state etl-42 --store sqlite:///states.db

\b
Exit status:
    0  shown
{EXITS}"""


@click.command("show-state", cls=CeleryCommand, help=_HELP, short_help="Show everything about one job.")
@job_argument
@run_option
@option(
    "--limit",
    type=click.IntRange(0),
    metavar="N",
    default=20,
    show_default=True,
    help="Maximum number of running rows; with --format json, of failed and running rows.",
    group="Output",
)
@format_option
@store_option
@click.pass_context
@handle_preload_options
def show_state(
    ctx: click.Context, /, job_id: str, run_token: str | None, limit: int, style: str, store_url: str | None
) -> None:
    """Show a job."""
    with interruptible(), opened_store(ctx.obj.app, store_url) as store:
        output = Output(no_color=ctx.obj.no_color)
        view = read_job(store, find_job(store, job_id, run_token), limit)
        if style == "json":
            output.record(compact(view_to_wire(view)))
            return
        for line in job_lines(view, output.size.columns, output.glyphs):
            output.line(line)
