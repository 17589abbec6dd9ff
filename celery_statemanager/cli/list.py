"""``celery -A proj list-state``: list jobs and their progress."""

from __future__ import annotations

import click
from celery.bin.base import CeleryCommand, handle_preload_options

from celery_statemanager.cli.common import (
    AGE,
    format_option,
    interruptible,
    memory_hint,
    note,
    opened_store,
    option,
    store_option,
)
from celery_statemanager.cli.rendering.jobs import job_table
from celery_statemanager.cli.rendering.lines import Output
from celery_statemanager.codec import compact
from celery_statemanager.inspection import overview_to_wire
from celery_statemanager.overview import Phase, Wanted, list_overviews
from celery_statemanager.records import to_datetime
from celery_statemanager.stores import Store

_WHICH = "Which jobs"
_PHASES = [each.value for each in Phase]
_HELP = """List jobs with status, progress, finished and failed cells and the age of the last write.

The newest job comes first. TEXT selects the jobs whose id, run token, owner or
title (in their metadata) contains it, ignoring case. Ages count from the last
write and are written like 90s, 1h30m, 30d, 4w or 1mo (30 days).

\b
The status of a job:
  waiting    no cell has begun          finished   it settled with success
  running    some cells have begun      failed     it settled without success
  failing    running, and some failed   cancelled  the job was cancelled
  paused     rows that have not begun are held back

\b
Examples:
  celery -A proj list-state
  celery -A proj list-state etl --status failing --status failed
  celery -A proj list-state --older-than 30d --limit 1000
  celery -A proj list-state --newer-than 1h --format json | jq -r .jobID
  celery list-state --store sqlite:///states.db

\b
Exit status:
    0  listed, even if there are no jobs
    2  usage error
   69  the store is unavailable
   74  the output cannot be written
   78  invalid store URL or setting, or the store's file does not exist
  130  interrupted by Ctrl-C
"""


@click.command("list-state", cls=CeleryCommand, help=_HELP, short_help="List jobs and their progress.")
@click.argument("text", metavar="[TEXT]", default="")
@option("--older-than", type=AGE, help="Only jobs last written before this age.", group=_WHICH)
@option("--newer-than", type=AGE, help="Only jobs written within this age.", group=_WHICH)
@option(
    "--status",
    "--phase",
    "phases",
    type=click.Choice(_PHASES),
    multiple=True,
    help="Only jobs with this status; repeatable.",
    group=_WHICH,
)
@option("--all", "everything", is_flag=True, help="Include hidden jobs, which are marked deleted.", group=_WHICH)
@option(
    "--limit",
    type=click.IntRange(1),
    metavar="N",
    default=50,
    show_default=True,
    help="Maximum number of jobs.",
    group=_WHICH,
)
@format_option
@store_option
@click.pass_context
@handle_preload_options
def list_state(
    ctx: click.Context,
    /,
    text: str,
    older_than: int | None,
    newer_than: int | None,
    phases: tuple[str, ...],
    everything: bool,
    limit: int,
    style: str,
    store_url: str | None,
) -> None:
    """List jobs."""
    with interruptible(), opened_store(ctx.obj.app, store_url) as store:
        output = Output(no_color=ctx.obj.no_color)
        now = store.now()
        wanted = Wanted(
            text,
            None if older_than is None else now - older_than,
            None if newer_than is None else now - newer_than,
            frozenset(map(Phase, phases)),
            tombstoned=everything,
        )
        listed, more = list_overviews(store, wanted, limit)
        if style == "json":
            for each in listed:
                output.record(compact(overview_to_wire(each)))
        elif listed:
            for line in job_table(listed, to_datetime(store.now()), output.size.columns, output.glyphs):
                output.line(line)
        else:
            note("no matching jobs" if wanted != Wanted() else f"{_none(store)}{memory_hint(ctx.obj.app, store_url)}")
        for warning in store.server_warnings():
            note(f"warning: {warning}")
        if more:
            note(f"note: these are the newest {limit}; --limit {10 * limit} may list more")


def _none(store: Store) -> str:
    hidden = store.list_jobs(limit=1, tombstoned=True).jobs
    return "only hidden jobs: --all lists them" if hidden else "no jobs yet"
