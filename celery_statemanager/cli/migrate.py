"""``celery -A proj migrate-state``: migrate jobs of earlier releases, and of the Go module, to a later schema."""

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
    job_key,
    note,
    opened_store,
    option,
    run_option,
    store_option,
)
from celery_statemanager.cli.rendering import formatting
from celery_statemanager.cli.rendering.jobs import named
from celery_statemanager.cli.rendering.lines import Output
from celery_statemanager.cli.rendering.text import Span
from celery_statemanager.codec import compact
from celery_statemanager.errors import ConfigurationError
from celery_statemanager.integration.settings import PREFIX, Settings
from celery_statemanager.migrations import STEPS, MigrationReport, Skip, migrate_jobs
from celery_statemanager.records import JobRecord

_HELP = f"""Migrate jobs of earlier releases, and their states, to a later schema.

Upgrade all workers first; they may run during the migration. A job gets the
new schema number after all its states have it. The next run resumes an
interrupted run.

Jobs of the Go module become jobs of this package, with attempts and counts. Stop
the Go program first: its later writes have no effect.

With --schema, no job is migrated: the command creates the tables of a
PostgreSQL store, or upgrades them to this release, as a user who may do that.
Workers then need no right to create tables. Stop them before an upgrade.

The default target is the app's setting {PREFIX}migrate_target or, without
it, the newest schema. Beat migrates jobs too, except those of the Go module.

\b
Examples:
  celery -A proj migrate-state --target 2 --dry-run
  celery -A proj migrate-state --target 2
  celery -A proj migrate-state --target 2 --job etl-42
  celery -A proj migrate-state --schema
  celery migrate-state --store firestore://my-project --target 2 --limit 100

\b
Exit status:
    0  migrated, whether or not anything was found
    2  usage error, an unknown target, or a job with a newer schema
   66  no such job
   69  the store became unavailable; completed steps are kept
   74  the output cannot be written
   78  invalid store URL or setting, or the store's file does not exist
  130  interrupted by Ctrl-C; the next run resumes
"""

_REASONS = {
    Skip.NEWER: "skipped: has a later schema",
    Skip.FOREIGN: "skipped: created by another program",
    Skip.CHANGED: "skipped: changed during the migration, or deleted",
}

_JOB, _WHAT = "Which job", "What to migrate"


@click.command("migrate-state", cls=CeleryCommand, help=_HELP, short_help="Migrate jobs to a later schema.")
@option("--target", metavar="N", type=int, help="The target schema. [default: the newest]", group=_WHAT)
@option("--limit", metavar="N", type=click.IntRange(min=1), help="Stop after this number of jobs.", group=_WHAT)
@option("--dry-run", is_flag=True, help="Write nothing; print what would be done.", group=_WHAT)
@option("--schema", "tables", is_flag=True, help="Create or upgrade the store's tables only.", group=_WHAT)
@option("--job", "job_id", metavar="ID", help="Only this job.", group=_JOB)
@run_option
@format_option
@store_option
@click.pass_context
@handle_preload_options
def migrate_state(
    ctx: click.Context,
    /,
    target: int | None,
    limit: int | None,
    dry_run: bool,
    tables: bool,
    job_id: str | None,
    run_token: str | None,
    style: str,
    store_url: str | None,
) -> None:
    """Run one migration."""
    if tables:
        if dry_run or any(each is not None for each in (target, limit, job_id)):
            fail("--schema migrates no job: use it without --target, --limit, --dry-run and --job", Exit.USAGE)
        with interruptible(), opened_store(ctx.obj.app, store_url) as store:
            store.create_tables()
            _Printer(Output(no_color=ctx.obj.no_color), as_json=style == "json").tables()
        return
    if job_id is None and run_token is not None:
        fail("--run-token needs a job: add --job ID", Exit.USAGE)
    key = None if job_id is None else job_key(job_id, run_token, named_by="--job")
    schema = _checked(ctx.obj.app, target, own_store=store_url is not None)
    with interruptible(), opened_store(ctx.obj.app, store_url) as store:
        printer = _Printer(Output(no_color=ctx.obj.no_color), as_json=style == "json")
        try:
            report = migrate_jobs(
                store,
                schema,
                job_id=key and key.job_id,
                run_token=key and key.run_token,
                limit=limit,
                dry_run=dry_run,
                tell=printer.job if dry_run else None,
            )
        except ConfigurationError as error:
            fail(str(error), Exit.USAGE)
        printer.report(report, dry_run=dry_run)


def _checked(app: Celery, target: int | None, *, own_store: bool) -> int:
    """Return the target schema, by default that of the app; exit if no steps lead to it."""
    if target is None and not own_store:
        try:
            target = Settings.from_app(app).migrate_target
        except ConfigurationError as error:
            fail(str(error), Exit.CONFIGURATION)
    try:
        return STEPS.checked(STEPS.newest if target is None else target)
    except ConfigurationError as error:
        fail(str(error), Exit.USAGE)


class _Printer:
    def __init__(self, output: Output, *, as_json: bool) -> None:
        self._output = output
        self._as_json = as_json

    def job(self, job: JobRecord, what: int | Skip) -> None:
        """Print what would be done to a job."""
        if self._as_json:
            action, states = (what.value, 0) if isinstance(what, Skip) else ("migrated", what)
            fields = {"jobID": job.job_id, "runToken": job.run_token, "action": action, "states": states}
            self._output.record(compact({**fields, "schemaVersion": job.schema}))
            return
        if isinstance(what, Skip):
            before, after = f"{_REASONS[what]}: ", ""
        else:
            origin = f"from schema {job.schema}" if job.incarnation else "created by another program"
            before, after = "would migrate: ", f", {origin}, {formatting.counted(what, 'state')}"
        self._output.fitted([Span(named(before, job, after, self._output.size.columns, self._output.glyphs))])

    def tables(self) -> None:
        """Print that the tables exist in the version of this release."""
        if self._as_json:
            self._output.record(compact({"tables": "up to date"}))
        else:
            self._output.fitted([Span("the tables are up to date")])

    def report(self, report: MigrationReport, *, dry_run: bool) -> None:
        """Print the counts."""
        if self._as_json:
            self._output.record(compact({**asdict(report), "dryRun": dry_run}))
            return
        would = "would be " if dry_run else ""
        for count, label in (
            (report.scanned, "jobs examined"),
            (report.migrated, f"{would}migrated to schema {report.target}"),
            (report.states, "states of these jobs"),
        ):
            self._output.fitted([Span(f"{count:>6}  {label}", "" if count else "dim")])
        for reason, count in report.skipped.items():
            self._output.fitted([Span(f"{count:>6}  {_REASONS[Skip(reason)]}")])
        if dry_run:
            note("note: nothing was written")
