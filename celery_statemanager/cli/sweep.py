"""``celery -A proj sweep-state``: run one sweep for lost workers and unpublished callbacks."""

from __future__ import annotations

from dataclasses import asdict

import click
from celery.bin.base import CeleryCommand, handle_preload_options

from celery_statemanager.cli.common import format_option, interruptible, opened_store
from celery_statemanager.cli.rendering.lines import Output
from celery_statemanager.cli.rendering.text import Span
from celery_statemanager.codec import compact
from celery_statemanager.integration.app import StateManager
from celery_statemanager.integration.worker.sweeping import sweep

_HELP = """Sweep once: handle tasks of lost workers, and messages and callbacks that are due.

Workers and beat sweep automatically. Run this command if neither is running, or
to sweep at once. A sweep relies on the leases in the store. After an outage of the
store, wait for one lease first, so that workers can renew theirs.

\b
Examples:
  celery -A proj sweep-state
  celery -A proj sweep-state --format json

\b
Exit status:
    0  swept, whether or not anything was found
    2  usage error
   69  the store is unavailable
   74  the output cannot be written
   78  invalid store URL or setting, or the store's file does not exist
  130  interrupted by Ctrl-C
"""

_LABELS = {
    "marked": "attempts marked LOST",
    "requeued": "messages due again",
    "callbacks": "jobs whose callbacks were published",
    "published": "messages published",
    "workers": "records of dead workers removed",
    "stalled": "running tasks found stalled",
}


@click.command("sweep-state", cls=CeleryCommand, help=_HELP, short_help="Handle tasks of lost workers.")
@format_option
@click.pass_context
@handle_preload_options
def sweep_state(ctx: click.Context, /, style: str) -> None:
    """Run one sweep."""
    with interruptible(), opened_store(ctx.obj.app, None):
        output = Output(no_color=ctx.obj.no_color)
        app = ctx.obj.app
        app.loader.import_default_modules()  # as workers and beat do: a sweep sends only messages of registered tasks
        counts = asdict(sweep(StateManager(app)))
        if style == "json":
            output.record(compact(counts))
            return
        for kind, count in counts.items():
            output.line([Span(f"{count:>6}  {_LABELS[kind]}", "" if count else "dim")])
