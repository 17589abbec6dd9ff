"""``celery -A proj monitor-state``: watch a job until it has settled."""

from __future__ import annotations

import difflib

import click
from celery.bin.base import CeleryCommand, handle_preload_options

from celery_statemanager.cli.common import (
    Exit,
    checked_tag,
    checked_task,
    fail,
    find_job,
    interruptible,
    note,
    opened_store,
    option,
    run_option,
    store_option,
)
from celery_statemanager.cli.follow import Follower, Until
from celery_statemanager.cli.outputs import choose
from celery_statemanager.cli.rendering.lines import Output
from celery_statemanager.models import Scope
from celery_statemanager.records import JobRecord

_JOB, _HOW = "Which job", "How to watch"
_HELP = """Watch a job: what is there, then every change, until the job has settled.

A job without a plan of tags has settled once all its cells have ended and
nothing was written for 10 seconds.

\b
Examples:
  celery -A proj monitor-state --job etl-42
  celery -A proj monitor-state --job etl-42 --tag export --format table
  celery -A proj monitor-state --job etl-42 --exit-status && deploy
  celery -A proj monitor-state --job etl-42 --format json | jq .status
  celery monitor-state --store sqlite:///states.db --job etl-42 --no-follow

\b
Exit status:
    0  the job has settled, failed or not (with --no-follow: it was shown)
    1  with --exit-status: it has failures, or was cancelled
    2  wrong use
   66  no such job, or it was deleted meanwhile
   69  the store cannot be reached
   74  the output cannot be written
   78  the store's URL or a setting is wrong, or its file is not there
  130  ended by Ctrl-C; the job goes on
"""


@click.command("monitor-state", cls=CeleryCommand, help=_HELP, short_help="Watch a job's tasks live.")
@option("--job", "job_id", metavar="ID", required=True, help="The job to watch.", group=_JOB)
@run_option
@option("--tag", metavar="T", help="Only the cells under this tag.", group=_JOB)
@option("--task", "task_index", metavar="N", type=int, help="Only the cells of this task index.", group=_JOB)
@option(
    "--format",
    "style",
    type=click.Choice(["json", "table", "live"], case_sensitive=False),
    help="live: bars, the default on a terminal; table: lines; json: an object a change, the default in a pipe.",
    group=_HOW,
)
@option(
    "--follow/--no-follow",
    default=None,
    help="Go on after the job has settled; or show what is there and end. [default: until settled]",
    group=_HOW,
)
@option("--exit-status", is_flag=True, help="End with 1 if any task has failed or was cancelled.", group=_HOW)
@store_option
@click.pass_context
@handle_preload_options
def monitor_state(
    ctx: click.Context,
    /,
    job_id: str,
    run_token: str | None,
    tag: str | None,
    task_index: int | None,
    style: str | None,
    follow: bool | None,
    exit_status: bool,
    store_url: str | None,
) -> None:
    """Watch a job."""
    with interruptible(), opened_store(ctx.obj.app, store_url) as store:
        outlet = Output(no_color=ctx.obj.no_color)
        show = choose(style, outlet)
        job = find_job(store, job_id, run_token)
        scope = Scope(checked_tag(tag), checked_task(job, task_index))
        _tell_unplanned(job, scope.tag)
        follower = Follower(store, job, scope, _until(follow=follow))
        show(follower, outlet)
        if follower.deleted:
            fail(f"job {job_id!r} was deleted while it was watched", Exit.NO_JOB)
        ctx.exit(int(Exit.FAILED if exit_status and follower.failed() else Exit.OK))


def _until(*, follow: bool | None) -> Until:
    if follow is None:
        return Until.SETTLED
    return Until.FOREVER if follow else Until.NOW


def _tell_unplanned(job: JobRecord, tag: str | None) -> None:
    """A mistyped tag would show nothing, for ever."""
    if tag is None or job.plan is None or tag in job.plan.columns:
        return
    near = difflib.get_close_matches(tag, job.plan.tags, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    note(f"note: tag {tag!r} is not planned in job {job.job_id!r} (planned: {', '.join(job.plan.tags)}){hint}")
