"""``celery -A proj gc-state``: hide jobs that are idle, and delete those that have been for longer."""

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
from celery_statemanager.codec import compact, rfc3339
from celery_statemanager.errors import ConfigurationError
from celery_statemanager.garbage import Act, GarbageReport, Skip, collect_garbage
from celery_statemanager.integration.settings import PREFIX, Settings
from celery_statemanager.records import JobRecord, to_datetime
from celery_statemanager.retention import Ages

_HELP = f"""Collect garbage: hide jobs that are idle, delete those that have been for longer.

Ages count from a job's last write: 30d, 4w, 1mo (30 days), 72h, 1h30m. A hidden
job that was written to since is shown again. Spared are jobs with a task that a
live worker runs, and with a callback that is still to be published.

Without ages those of the app's settings hold, {PREFIX}gc_tombstone_age
and {PREFIX}gc_delete_age. Beat can do this: {PREFIX}gc_schedule.

\b
Examples:
  celery -A proj gc-state --tombstone-age 30d --delete-age 90d --dry-run
  celery -A proj gc-state --tombstone-age 30d --delete-age 90d
  celery -A proj gc-state --store sqlite:///old.db --dry-run

\b
Exit status:
    0  collected, whether or not anything was found
    2  wrong use
   69  the store cannot be reached; what was done stays done
   74  the output cannot be written
   78  the store's URL or a setting is wrong, or its file is not there
  130  ended by Ctrl-C; the next run goes on
"""

_DONE = {
    "scanned": "idle or hidden jobs looked at",
    "tombstoned": "hidden",
    "revived": "shown again",
    "deleted": "deleted",
    "purged": "states and other rows of deleted jobs removed",
}

_REHEARSED = {
    "scanned": "idle or hidden jobs looked at",
    "tombstoned": "would be hidden",
    "revived": "would be shown again",
    "deleted": "would be deleted",
}

_REASONS = {
    Skip.RUNNING: "spared: a live worker runs one of its tasks",
    Skip.CALLBACK: "spared: a callback is still to be published",
    Skip.PUBLISHING: "spared: it is being published",
    Skip.NEWER: "spared: written by a newer release",
    Skip.CHANGED: "spared: changed at this very moment",
}

_WOULD = {Act.TOMBSTONED: "would hide", Act.REVIVED: "would show again", Act.DELETED: "would delete"}


@click.command("gc-state", cls=CeleryCommand, help=_HELP, short_help="Hide idle jobs, and delete them later.")
@option("--tombstone-age", metavar="AGE", help="Hide jobs that are idle for longer.", group="What to collect")
@option("--delete-age", metavar="AGE", help="Delete jobs that are idle for longer.", group="What to collect")
@option("--dry-run", is_flag=True, help="Write nothing; tell what would be done.", group="What to collect")
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
    """Collect once."""
    tombstone, delete = _checked(ctx.obj.app, tombstone_age, delete_age, own_store=store_url is not None)
    with interruptible(), opened_store(ctx.obj.app, store_url) as store:
        teller = _Teller(Output(no_color=ctx.obj.no_color), store.now(), as_json=style == "json")
        report = collect_garbage(
            store,
            tombstone_age=tombstone,
            delete_age=delete,
            dry_run=dry_run,
            tell=teller.job if dry_run else None,
        )
        teller.report(report, dry_run=dry_run)


def _checked(app: Celery, tombstone: str | None, delete: str | None, *, own_store: bool) -> tuple[str, str]:
    """Give both ages, the app's where none is given; end the command where they make no sense."""
    if tombstone is None and delete is None and not own_store:
        try:
            settings = Settings.from_app(app)
        except ConfigurationError as error:
            fail(str(error), Exit.CONFIGURATION)
        tombstone, delete = settings.gc_tombstone_age, settings.gc_delete_age
    if tombstone is None or delete is None:
        fail("how old is garbage? say both, such as --tombstone-age 30d --delete-age 90d", Exit.USAGE)
    try:
        Ages.parse(tombstone, delete)
    except ConfigurationError as error:
        fail(str(error), Exit.USAGE)
    return tombstone, delete


class _Teller:
    def __init__(self, outlet: Output, now: int, *, as_json: bool) -> None:
        self._outlet = outlet
        self._now = now
        self._as_json = as_json

    def job(self, job: JobRecord, what: Act | Skip) -> None:
        """Tell what would become of a job."""
        if self._as_json:
            last = rfc3339(to_datetime(job.last_activity))
            told = {"jobID": job.job_id, "runToken": job.run_token, "action": what.value, "lastActivity": last}
            self._outlet.record(compact(told))
            return
        text = _WOULD[what] if isinstance(what, Act) else _REASONS[what]
        idle = f", idle for {formatting.duration((self._now - job.last_activity) / 1_000_000)}"
        self._outlet.fitted([Span(named(f"{text}: ", job, idle, self._outlet.size.columns, self._outlet.glyphs))])

    def report(self, report: GarbageReport, *, dry_run: bool) -> None:
        """Tell the numbers."""
        if self._as_json:
            self._outlet.record(compact({**asdict(report), "dryRun": dry_run}))
            return
        for kind, told in (_REHEARSED if dry_run else _DONE).items():
            count = getattr(report, kind)
            self._outlet.fitted([Span(f"{count:>6}  {told}", "" if count else "dim")])
        for reason, count in report.skipped.items():
            self._outlet.fitted([Span(f"{count:>6}  {_REASONS[Skip(reason)]}")])
        if dry_run:
            note("note: nothing was written")
