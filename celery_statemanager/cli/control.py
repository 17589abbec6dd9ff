"""Functions that ``pause-state``, ``resume-state`` and ``cancel-state`` share."""

from __future__ import annotations

from celery_statemanager.cli.common import Exit, fail
from celery_statemanager.cli.rendering.jobs import name
from celery_statemanager.cli.rendering.lines import Output
from celery_statemanager.cli.rendering.text import Span
from celery_statemanager.codec import compact
from celery_statemanager.limits import check_message
from celery_statemanager.records import JobRecord


def checked_reason(reason: str | None) -> str | None:
    """Return the reason; exit with a usage error if it is invalid."""
    try:
        return check_message(reason)
    except ValueError as error:
        fail(f"--reason: {error}", Exit.USAGE)


def report_change(output: Output, job: JobRecord, verb: str, style: str) -> None:
    """Print that a command has changed a job, as a line or as JSON."""
    if style == "json":
        output.record(compact({"jobID": job.job_id, "runToken": job.run_token, verb: True}))
    else:
        output.line([Span(f"{verb} {name(job, output.glyphs)}")])
