"""``celery -A proj export-state JOB``: write the rows of a job as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options
from kombu.exceptions import ContentDisallowed

from celery_statemanager.cli.common import (
    EXITS,
    Exit,
    fail,
    find_job,
    interruptible,
    job_argument,
    opened_store,
    option,
    run_option,
    store_option,
)
from celery_statemanager.cli.rendering.lines import Output
from celery_statemanager.integration.submission.export import Rows, export_rows
from celery_statemanager.integration.submission.results import WITHOUT_RESULTS

_HELP = f"""Write the rows of a job, one JSON object a line.

Each object has the taskIndex, the tasks with their arguments, the status and
the message of the stage that decides about the row, the number of attempts,
and the result if the job keeps results.

\b
Examples:
  celery -A proj export-state etl-42 > rows.jsonl
  celery -A proj export-state etl-42 | jq .status
  celery export-state etl-42 --failed --store sqlite:///states.db

\b
Exit status:
    0  exported
    1  the job keeps no results, or its arguments must not be decoded
{EXITS}"""


@click.command("export-state", cls=CeleryCommand, help=_HELP, short_help="Write the rows of a job as JSON lines.")
@job_argument
@run_option
@option("--results", is_flag=True, help="Only rows that have finished, with their results.", group="Rows")
@option("--failed", is_flag=True, help="Only rows that have ended without success.", group="Rows")
@store_option
@click.pass_context
@handle_preload_options
def export_state(
    ctx: click.Context, /, job_id: str, run_token: str | None, results: bool, failed: bool, store_url: str | None
) -> None:
    """Export a job."""
    if results and failed:
        fail("--results and --failed exclude each other: rows that have failed have no results", Exit.USAGE)
    which = Rows.FINISHED if results else Rows.FAILED if failed else Rows.ALL
    with interruptible(), opened_store(ctx.obj.app, store_url) as store:
        job = find_job(store, job_id, run_token)
        if results and job.results is None:
            fail(f"job {job.job_id!r} keeps no results: {WITHOUT_RESULTS}", Exit.FAILED)
        output = Output(no_color=ctx.obj.no_color)
        for entry in _readable(export_rows(ctx.obj.app, store, job, which)):
            output.record(json.dumps(entry, ensure_ascii=False, allow_nan=False))


def _readable(entries: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    try:
        yield from entries
    except ContentDisallowed as error:
        fail(f"cannot read the arguments of a row: {error}; name the app with -A, and allow their format", Exit.FAILED)
