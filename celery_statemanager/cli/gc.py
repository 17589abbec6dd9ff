"""``celery -A proj gc-state``: hide idle jobs and delete jobs that have been idle longer."""

from __future__ import annotations

from dataclasses import asdict

import click
from celery import Celery
from celery.bin.base import CeleryCommand, handle_preload_options

from celery_statemanager.cli.common import (
    Exit,
    fail,
    format_option,
    interruptible,
    note,
    opened_store,
    option,
    store_option,
)
from celery_statemanager.cli.rendering import formatting
from celery_statemanager.cli.rendering.jobs import named
from celery_statemanager.cli.rendering.lines import Output
from celery_statemanager.cli.rendering.text import Span
from celery_statemanager.codec import compact
from celery_statemanager.errors import ConfigurationError
from celery_statemanager.garbage import Act, GarbageReport, Skip, collect_garbage
from celery_statemanager.integration.settings import PREFIX, Settings
from celery_statemanager.models import rfc3339
from celery_statemanager.records import JobRecord, to_datetime
from celery_statemanager.retention import Ages

_HELP = f"""Collect garbage: hide idle jobs, and delete jobs that have been idle longer.

Ages count from a job's last write: 30d, 4w, 1mo (30 days), 72h, 1h30m. A hidden
job that was written to again is shown again. A job is skipped while a live
worker runs one of its tasks or while one of its callbacks is unpublished.

The default ages are the app's settings {PREFIX}gc_tombstone_age and
{PREFIX}gc_delete_age; with --store, both ages are required. Beat collects
garbage automatically if {PREFIX}gc_schedule is set.

\b
Examples:
  celery -A proj gc-state --tombstone-age 30d --delete-age 90d --dry-run
  celery -A proj gc-state --tombstone-age 30d --delete-age 90d
  celery gc-state --store sqlite:///old.db --tombstone-age 4w --delete-age 3mo

\b
Exit status:
    0  collected, whether or not anything was found
    2  usage error
   69  the store became unavailable; completed steps are kept
   74  the output cannot be written
   78  invalid store URL or setting, or the store's file does not exist
  130  interrupted by Ctrl-C; the next run resumes
"""

_DONE = {
    "scanned": "idle or hidden jobs examined",
    "tombstoned": "hidden",
    "revived": "shown again",
    "deleted": "deleted",
    "purged": "states and other rows of deleted jobs removed",
}

_DRY_RUN = {
    "scanned": "idle or hidden jobs examined",
    "tombstoned": "would be hidden",
    "revived": "would be shown again",
    "deleted": "would be deleted",
}

_REASONS = {
    Skip.RUNNING: "skipped: a live worker runs one of its tasks",
    Skip.CALLBACK: "skipped: a callback is not published yet",
    Skip.PUBLISHING: "skipped: it is paused, or has messages that are not published yet",
    Skip.NEWER: "skipped: written by a newer release",
    Skip.CHANGED: "skipped: changed during the collection",
}

_WOULD = {Act.TOMBSTONED: "would hide", Act.REVIVED: "would show again", Act.DELETED: "would delete"}


@click.command("gc-state", cls=CeleryCommand, help=_HELP, short_help="Hide idle jobs, and delete them later.")
@option(
    "--tombstone-age", metavar="AGE", help="Hide jobs that have been idle longer than this.", group="What to collect"
)
@option(
    "--delete-age", metavar="AGE", help="Delete jobs that have been idle longer than this.", group="What to collect"
)
@option("--dry-run", is_flag=True, help="Write nothing; print what would be done.", group="What to collect")
@format_option
@store_option
@click.pass_context
@handle_preload_options
def gc_state(
    ctx: click.Context,
    /,
    tombstone_age: str | None,
    delete_age: str | None,
    dry_run: bool,
    style: str,
    store_url: str | None,
) -> None:
    """Run one collection."""
    tombstone, delete = _checked(ctx.obj.app, tombstone_age, delete_age, own_store=store_url is not None)
    with interruptible(), opened_store(ctx.obj.app, store_url) as store:
        printer = _Printer(Output(no_color=ctx.obj.no_color), store.now(), as_json=style == "json")
        report = collect_garbage(
            store,
            tombstone_age=tombstone,
            delete_age=delete,
            dry_run=dry_run,
            tell=printer.job if dry_run else None,
        )
        printer.report(report, dry_run=dry_run)


def _checked(app: Celery, tombstone: str | None, delete: str | None, *, own_store: bool) -> tuple[str, str]:
    """Return both ages, by default those of the app; exit if they are missing or invalid."""
    if tombstone is None and delete is None and not own_store:
        try:
            settings = Settings.from_app(app)
        except ConfigurationError as error:
            fail(str(error), Exit.CONFIGURATION)
        tombstone, delete = settings.gc_tombstone_age, settings.gc_delete_age
    if tombstone is None or delete is None:
        fail("both ages are required, for example --tombstone-age 30d --delete-age 90d", Exit.USAGE)
    try:
        Ages.parse(tombstone, delete)
    except ConfigurationError as error:
        fail(str(error), Exit.USAGE)
    return tombstone, delete


class _Printer:
    def __init__(self, output: Output, now: int, *, as_json: bool) -> None:
        self._output = output
        self._now = now
        self._as_json = as_json

    def job(self, job: JobRecord, what: Act | Skip) -> None:
        """Print what would be done to a job."""
        if self._as_json:
            last = rfc3339(to_datetime(job.last_activity))
            fields = {"jobID": job.job_id, "runToken": job.run_token, "action": what.value, "lastActivity": last}
            self._output.record(compact(fields))
            return
        text = _WOULD[what] if isinstance(what, Act) else _REASONS[what]
        idle = f", idle for {formatting.duration((self._now - job.last_activity) / 1_000_000)}"
        self._output.fitted([Span(named(f"{text}: ", job, idle, self._output.size.columns, self._output.glyphs))])

    def report(self, report: GarbageReport, *, dry_run: bool) -> None:
        """Print the counts."""
        if self._as_json:
            self._output.record(compact({**asdict(report), "dryRun": dry_run}))
            return
        for kind, label in (_DRY_RUN if dry_run else _DONE).items():
            count = getattr(report, kind)
            self._output.fitted([Span(f"{count:>6}  {label}", "" if count else "dim")])
        for reason, count in report.skipped.items():
            self._output.fitted([Span(f"{count:>6}  {_REASONS[Skip(reason)]}")])
        if dry_run:
            note("note: nothing was written")
