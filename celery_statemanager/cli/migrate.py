"""``celery -A proj migrate-state``: bring jobs of earlier releases, and of the Go module, to a later schema."""

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

_HELP = f"""Bring jobs of earlier releases, and their states, to a later schema.

Upgrade the workers first; they may go on meanwhile. A job bears the new schema
only after all its states do: what is cut off is gone on with by the next run.

Jobs of the Go module gain attempts, counts and all else that ours have. Their
program must have stopped: nobody sees what it writes into them afterwards.

Without a target it is the app's {PREFIX}migrate_target, or the newest.
Beat can do this, except for jobs of the Go module.

\b
Examples:
  celery -A proj migrate-state --target 1 --dry-run
  celery -A proj migrate-state --target 1
  celery -A proj migrate-state --target 1 --job etl-42
  celery migrate-state --store firestore://my-project --target 1 --limit 100

\b
Exit status:
    0  migrated, whether or not anything was found
    2  wrong use, a target that no steps lead to, or the job is beyond it
   66  no such job
   69  the store cannot be reached; what was done stays done
   74  the output cannot be written
   78  the store's URL or a setting is wrong, or its file is not there
  130  ended by Ctrl-C; the next run goes on
"""

_REASONS = {
    Skip.NEWER: "left: has a later schema",
    Skip.FOREIGN: "left: made by another program",
    Skip.CHANGED: "left: written to all the while, or deleted",
}

_JOB, _WHAT = "Which job", "What to migrate"


@click.command("migrate-state", cls=CeleryCommand, help=_HELP, short_help="Bring jobs to a later schema.")
@option("--target", metavar="N", type=int, help="The schema to reach. [default: the newest]", group=_WHAT)
@option("--limit", metavar="N", type=click.IntRange(min=1), help="End after so many jobs.", group=_WHAT)
@option("--dry-run", is_flag=True, help="Write nothing; tell what would be done.", group=_WHAT)
@option("--job", "job_id", metavar="ID", help="This job alone.", group=_JOB)
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
    job_id: str | None,
    run_token: str | None,
    style: str,
    store_url: str | None,
) -> None:
    """Migrate once."""
    if job_id is None and run_token is not None:
        fail("--run-token tells runs of one job apart: give the job, --job ID", Exit.USAGE)
    key = None if job_id is None else job_key(job_id, run_token)
    schema = _checked(ctx.obj.app, target, own_store=store_url is not None)
    with interruptible(), opened_store(ctx.obj.app, store_url) as store:
        teller = _Teller(Output(no_color=ctx.obj.no_color), as_json=style == "json")
        try:
            report = migrate_jobs(
                store,
                schema,
                job_id=key and key.job_id,
                run_token=key and key.run_token,
                limit=limit,
                dry_run=dry_run,
                tell=teller.job if dry_run else None,
            )
        except ConfigurationError as error:
            fail(str(error), Exit.USAGE)
        teller.report(report, dry_run=dry_run)


def _checked(app: Celery, target: int | None, *, own_store: bool) -> int:
    """Give the schema to reach, the app's where none is given; end the command where no steps lead there."""
    if target is None and not own_store:
        try:
            target = Settings.from_app(app).migrate_target
        except ConfigurationError as error:
            fail(str(error), Exit.CONFIGURATION)
    try:
        return STEPS.checked(STEPS.newest if target is None else target)
    except ConfigurationError as error:
        fail(str(error), Exit.USAGE)


class _Teller:
    def __init__(self, outlet: Output, *, as_json: bool) -> None:
        self._outlet = outlet
        self._as_json = as_json

    def job(self, job: JobRecord, what: int | Skip) -> None:
        """Tell what would become of a job."""
        if self._as_json:
            action, states = (what.value, 0) if isinstance(what, Skip) else ("migrated", what)
            told = {"jobID": job.job_id, "runToken": job.run_token, "action": action, "states": states}
            self._outlet.record(compact({**told, "schemaVersion": job.schema}))
            return
        if isinstance(what, Skip):
            before, after = f"{_REASONS[what]}: ", ""
        else:
            made = f"from schema {job.schema}" if job.incarnation else "made by another program"
            before, after = "would migrate: ", f", {made}, {formatting.counted(what, 'state')}"
        self._outlet.fitted([Span(named(before, job, after, self._outlet.size.columns, self._outlet.glyphs))])

    def report(self, report: MigrationReport, *, dry_run: bool) -> None:
        """Tell the numbers."""
        if self._as_json:
            self._outlet.record(compact({**asdict(report), "dryRun": dry_run}))
            return
        would = "would be " if dry_run else ""
        for count, told in (
            (report.scanned, "jobs looked at"),
            (report.migrated, f"{would}brought to schema {report.target}"),
            (report.states, "states of theirs"),
        ):
            self._outlet.fitted([Span(f"{count:>6}  {told}", "" if count else "dim")])
        for reason, count in report.skipped.items():
            self._outlet.fitted([Span(f"{count:>6}  {_REASONS[Skip(reason)]}")])
        if dry_run:
            note("note: nothing was written")
