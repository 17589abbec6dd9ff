"""What commands that change a job share, such as ``pause-state`` and ``cancel-state``."""

from __future__ import annotations

from collections.abc import Callable

import click

from celery_statemanager.cli.common import Exit, fail, find_job, interruptible, opened_store
from celery_statemanager.cli.rendering.jobs import name
from celery_statemanager.cli.rendering.lines import Output
from celery_statemanager.cli.rendering.text import Span
from celery_statemanager.codec import compact
from celery_statemanager.limits import check_message
from celery_statemanager.records import JobRef
from celery_statemanager.stores import FullStore

Change = Callable[[FullStore, JobRef], bool]
"""A function that changes a job and returns whether it did."""


def apply_change(
    ctx: click.Context,
    change: Change,
    verb: str,
    refusal: str,
    *,
    job_id: str,
    run_token: str | None,
    style: str,
    store_url: str | None,
) -> None:
    """Change a job and print that, as a line or as JSON; exit if the job was not changed.

    Args:
        verb: the past participle that names the change, such as "paused".
        refusal: why a job is not changed.
    """
    with interruptible(), opened_store(ctx.obj.app, store_url) as store:
        job = find_job(store, job_id, run_token)
        if not change(store, job.ref):
            fail(f"job {job.job_id!r} was not {verb}: {refusal}", Exit.FAILED)
        output = Output(no_color=ctx.obj.no_color)
        if style == "json":
            output.record(compact({"jobID": job.job_id, "runToken": job.run_token, verb: True}))
        else:
            output.line([Span(f"{verb} {name(job, output.glyphs)}")])


def checked_reason(reason: str | None) -> str | None:
    """Return the reason; exit with a usage error if it is invalid."""
    try:
        return check_message(reason)
    except ValueError as error:
        fail(f"--reason: {error}", Exit.USAGE)
