"""``celery -A proj monitor-state``: watch a job until it has settled."""

from __future__ import annotations

import difflib

import click
from celery.bin.base import CeleryCommand, handle_preload_options
from click.core import ParameterSource

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
from celery_statemanager.cli.outputs import choose, show_board
from celery_statemanager.cli.rendering.lines import Output
from celery_statemanager.models import Scope
from celery_statemanager.records import JobRecord

_JOB, _HOW = "Which job", "How to watch"
_HELP = """Watch a job until it has settled or is rerun: its current states, then changes.

A job without planned tags has settled once all its cells have ended and nothing
was written for 10 seconds. Without JOB, show all jobs on the terminal until Ctrl-C.

\b
Examples:
  celery -A proj monitor-state etl-42
  celery -A proj monitor-state etl-42 --tag export --format table
  celery -A proj monitor-state etl-42 --exit-status && deploy
  celery -A proj monitor-state etl-42 --format json | jq .status
  celery monitor-state etl-42 --store sqlite:///states.db --no-follow

\b
Exit status:
    0  the job has settled, failed or not (with --no-follow: it was shown)
    1  with --exit-status: a task has failed, or the job was cancelled
    2  usage error
   66  no such job, or it was deleted while it was watched
   69  the store is unavailable
   74  the output cannot be written
   78  invalid store URL or setting, or the store's file does not exist
  130  interrupted by Ctrl-C; the job continues
"""


@click.command("monitor-state", cls=CeleryCommand, help=_HELP, short_help="Watch a job's tasks live.")
@click.argument("job_argument", metavar="[JOB]", required=False)
@option("--job", "job_option", metavar="ID", help="The same as JOB.", group=_JOB)
@run_option
@option("--tag", metavar="T", help="Only the cells with this tag.", group=_JOB)
@option("--task", "task_index", metavar="N", type=int, help="Only the cells of this task index.", group=_JOB)
@option(
    "--format",
    "style",
    type=click.Choice(["json", "table", "live"], case_sensitive=False),
    help="live: bars (the default on a terminal). table: a line for each change. json: an object for each change (the "
    "default in a pipe).",
    group=_HOW,
)
@option(
    "--follow/--no-follow",
    default=None,
    help="Continue after the job has settled, or show the current states and exit. [default: until settled]",
    group=_HOW,
)
@option("--exit-status", is_flag=True, help="Exit with 1 if a task has failed or the job was cancelled.", group=_HOW)
@store_option
@click.pass_context
@handle_preload_options
def monitor_state(
    ctx: click.Context,
    /,
    job_argument: str | None,
    job_option: str | None,
    run_token: str | None,
    tag: str | None,
    task_index: int | None,
    style: str | None,
    follow: bool | None,
    exit_status: bool,
    store_url: str | None,
) -> None:
    """Watch a job."""
    job_id = _job_id(job_argument, job_option)
    if job_id is None:
        _check_needless(ctx)
    with interruptible(), opened_store(ctx.obj.app, store_url) as store:
        output = Output(no_color=ctx.obj.no_color)
        if job_id is None:
            show_board(store, output)
            return
        show = choose(style, output)
        job = find_job(store, job_id, run_token)
        scope = Scope(checked_tag(tag), checked_task(job, task_index))
        _warn_if_unplanned(job, scope.tag)
        follower = Follower(store, job, scope, _until(follow=follow))
        show(follower, output)
        if follower.deleted:
            fail(f"job {job_id!r} was deleted while it was watched", Exit.NO_JOB)
        ctx.exit(int(Exit.FAILED if exit_status and follower.failed() else Exit.OK))


def _job_id(argument: str | None, option: str | None) -> str | None:
    """Return the job given as JOB or as ``--job``, or None; exit if the two differ."""
    if argument is not None and option is not None and argument != option:
        fail(f"two different jobs: JOB is {argument!r} and --job is {option!r}; use one of them", Exit.USAGE)
    return option if argument is None else argument


def _check_needless(ctx: click.Context) -> None:
    """Exit if an option was given that needs a job."""
    for each in ctx.command.params:
        given = ctx.get_parameter_source(each.name or "") is ParameterSource.COMMANDLINE
        if given and each.name not in {"store_url", "style"}:
            fail(f"{each.opts[0]} needs a job: write monitor-state JOB; list-state lists the jobs", Exit.USAGE)
    if ctx.params["style"] not in {None, "live"}:
        fail("--format needs a job: write monitor-state JOB, or list-state --format json for all jobs", Exit.USAGE)


def _until(*, follow: bool | None) -> Until:
    if follow is None:
        return Until.SETTLED
    return Until.FOREVER if follow else Until.NOW


def _warn_if_unplanned(job: JobRecord, tag: str | None) -> None:
    """Write a note for a tag that is not planned: if it is misspelt, nothing will ever be shown."""
    if tag is None or job.plan is None or tag in job.plan.columns:
        return
    near = difflib.get_close_matches(tag, job.plan.tags, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    note(f"note: tag {tag!r} is not planned in job {job.job_id!r} (planned: {', '.join(job.plan.tags)}){hint}")
