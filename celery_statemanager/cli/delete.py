"""``celery -A proj delete-state JOB``: delete a job and all its states, after a confirmation."""

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

_HELP = """Delete a job and all its states permanently.

The command asks for confirmation; --yes skips it and is required without a
terminal. Running tasks of the job stop at their next write. To delete old
jobs automatically, use gc-state.

\b
Examples:
  celery -A proj delete-state etl-42
  celery -A proj delete-state etl-42 --run-token 2026-11-24 --yes
  celery delete-state etl-42 --store sqlite:///states.db

\b
Exit status:
    0  deleted
    1  not deleted: the answer was no
    2  usage error, or no terminal to ask on
   66  no such job
   69  the store is unavailable
   74  the output cannot be written
   78  invalid store URL or setting, or the store's file does not exist
  130  interrupted by Ctrl-C; at the question, this deletes nothing
"""


@click.command("delete-state", cls=CeleryCommand, help=_HELP, short_help="Delete a job and all its states.")
@job_argument
@run_option
@option("--yes", is_flag=True, help="Do not ask for confirmation.", group="Confirmation")
@format_option
@store_option
@click.pass_context
@handle_preload_options
def delete_state(
    ctx: click.Context, /, job_id: str, run_token: str | None, yes: bool, style: str, store_url: str | None
) -> None:
    """Delete a job."""
    with interruptible(), opened_store(ctx.obj.app, store_url) as store:
        output = Output(no_color=ctx.obj.no_color)
        found = overview(store, find_job(store, job_id, run_token).ref)
        if not yes:
            _ask(store, found, output.glyphs)
        delete_job(store, found.job.ref)
        if style == "json":
            output.record(compact({"jobID": found.job.job_id, "runToken": found.job.run_token, "deleted": True}))
        else:
            output.line([Span(f"deleted {name(found.job, output.glyphs)}")])


def _ask(store: Store, found: Overview, glyphs: Glyphs) -> None:
    """Ask for confirmation; exit if there is no terminal or the answer is no."""
    if not sys.stdin.isatty():
        fail(f"no terminal to confirm the deletion of job {found.job.job_id!r}: add --yes", Exit.USAGE)
    ago = formatting.ago((to_datetime(store.now()) - to_datetime(found.job.last_activity)).total_seconds())
    cells = formatting.counted(found.summary.expected - found.summary.not_started, "state")
    click.echo(f"{name(found.job, glyphs)}: {found.phase.value}, {cells}, last written {ago}", err=True)
    try:
        agreed = click.confirm("Delete it and all its states?", err=True)
    except click.Abort:  # Ctrl-C, or the end of input
        raise KeyboardInterrupt from None
    if not agreed:
        fail("not deleted", Exit.FAILED)
