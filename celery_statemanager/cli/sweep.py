"""``celery -A proj sweep-state``: look once for what died without a word."""

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

_HELP = """Look once for lost workers, unpublished callbacks and dead publishers, and mend what is found.

Every worker and beat do this by themselves; run it where neither runs, or
where you do not want to wait. It believes the leases that it finds: after the
store was away, give workers one lease to renew theirs.

\b
Examples:
  celery -A proj sweep-state
  celery -A proj sweep-state --format json

\b
Exit status:
    0  swept, whether or not anything was found
    2  wrong use
   69  the store cannot be reached
   74  the output cannot be written
   78  the store's URL or a setting is wrong, or its file is not there
  130  ended by Ctrl-C
"""

_WORDS = {
    "marked": "attempts marked LOST",
    "requeued": "messages sent again",
    "callbacks": "jobs whose callbacks were published",
    "submissions": "jobs cancelled whose publisher died",
    "workers": "dead workers forgotten",
}


@click.command("sweep-state", cls=CeleryCommand, help=_HELP, short_help="Mend what dead workers left behind.")
@format_option
@click.pass_context
@handle_preload_options
def sweep_state(ctx: click.Context, /, style: str) -> None:
    """Sweep once."""
    with interruptible(), opened_store(ctx.obj.app, None):
        outlet = Output(no_color=ctx.obj.no_color)
        app = ctx.obj.app
        app.loader.import_default_modules()  # as workers and beat do: a sweep sends only messages of tasks it knows
        swept = asdict(sweep(StateManager(app)))
        if style == "json":
            outlet.record(compact(swept))
            return
        for kind, count in swept.items():
            outlet.line([Span(f"{count:>6}  {_WORDS[kind]}", "" if count else "dim")])
