"""``celery -A proj delete-state JOB``: remove a job and all its states, after asking."""

from __future__ import annotations

import sys

import click
from celery.bin.base import CeleryCommand, handle_preload_options

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
    store_option,
)
from celery_statemanager.cli.rendering import formatting
from celery_statemanager.cli.rendering.jobs import name
from celery_statemanager.cli.rendering.lines import Output
from celery_statemanager.cli.rendering.text import Glyphs, Span
from celery_statemanager.codec import compact
from celery_statemanager.overview import Overview, overview
from celery_statemanager.records import to_datetime
from celery_statemanager.retention import delete_job
from celery_statemanager.stores import Store

_HELP = """Delete a job and every state of it, for good.

Asks first; --yes does not, and is needed where there is no terminal to ask on.
Tasks of the job that still run find it gone at their next write, and stop.
To let a job go in time instead, leave it to gc-state.

\b
Examples:
  celery -A proj delete-state etl-42
  celery -A proj delete-state etl-42 --run-token 2026-11-24 --yes
  celery delete-state etl-42 --store sqlite:///states.db

\b
Exit status:
    0  deleted
    1  not deleted: the answer was no
    2  wrong use, or nobody to ask
   66  no such job
   69  the store cannot be reached
   74  the output cannot be written
   78  the store's URL or a setting is wrong, or its file is not there
  130  ended by Ctrl-C; nothing was deleted if it still asked
"""


@click.command("delete-state", cls=CeleryCommand, help=_HELP, short_help="Delete a job and all its states.")
@job_argument
@run_option
@option("--yes", is_flag=True, help="Do not ask.", group="Whether to ask")
@format_option
@store_option
@click.pass_context
@handle_preload_options
def delete_state(
    ctx: click.Context, /, job_id: str, run_token: str | None, yes: bool, style: str, store_url: str | None
) -> None:
    """Delete a job."""
    with interruptible(), opened_store(ctx.obj.app, store_url) as store:
        outlet = Output(no_color=ctx.obj.no_color)
        doomed = overview(store, find_job(store, job_id, run_token).ref)
        if not yes:
            _ask(store, doomed, outlet.glyphs)
        delete_job(store, doomed.job.ref)
        if style == "json":
            outlet.record(compact({"jobID": doomed.job.job_id, "runToken": doomed.job.run_token, "deleted": True}))
        else:
            outlet.line([Span(f"deleted {name(doomed.job, outlet.glyphs)}")])


def _ask(store: Store, doomed: Overview, glyphs: Glyphs) -> None:
    """End the command unless a person at a terminal agrees."""
    if not sys.stdin.isatty():
        fail(f"nobody to ask whether to delete job {doomed.job.job_id!r}: say --yes", Exit.USAGE)
    ago = formatting.ago((to_datetime(store.now()) - to_datetime(doomed.job.last_activity)).total_seconds())
    cells = formatting.counted(doomed.summary.expected - doomed.summary.not_started, "state")
    click.echo(f"{name(doomed.job, glyphs)}: {doomed.phase.value}, {cells}, last written {ago}", err=True)
    try:
        agreed = click.confirm("Delete it and all its states?", err=True)
    except click.Abort:  # Ctrl-C, or the end of input
        raise KeyboardInterrupt from None
    if not agreed:
        fail("not deleted", Exit.FAILED)
