"""``celery -A proj web-state``: serve the pages of all jobs on this machine."""

from __future__ import annotations

import importlib

import click
from celery.bin.base import CeleryCommand, handle_preload_options

from celery_statemanager.cli.common import Exit, fail, interruptible, note, option
from celery_statemanager.errors import ConfigurationError, install_hint

_HELP = """Serve pages of all jobs, with live progress, until Ctrl-C.

The command prints a link that works once. The browser that opens it gets a
cookie, which is valid until the command ends. This browser may view, pause,
cancel and rerun all jobs. The command needs the extra "web".

\b
Examples:
  celery -A proj web-state
  celery -A proj web-state --port 8080

\b
Exit status:
    2  usage error
   69  the address cannot be used
   78  invalid store URL or setting, or the extra web is not installed
  130  ended by Ctrl-C
"""


@click.command("web-state", cls=CeleryCommand, help=_HELP, short_help="Serve pages of all jobs in the browser.")
@option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.", group="Server")
@option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=8_765,
    show_default=True,
    help="Port to listen on; 0 chooses a free one.",
    group="Server",
)
@click.pass_context
@handle_preload_options
def web_state(ctx: click.Context, /, host: str, port: int) -> None:
    """Serve the pages."""
    from celery_statemanager.integration.app import StateManager

    app = ctx.obj.app
    with interruptible():
        try:
            local = importlib.import_module("celery_statemanager.web.local")  # cli must not import web
        except ModuleNotFoundError as error:
            fail(f"{error.name} is missing: {install_hint('web')}", Exit.CONFIGURATION)
        try:
            server = local.LocalServer(StateManager.installed(app) or StateManager(app), host, port)
        except ConfigurationError as error:
            fail(str(error), Exit.CONFIGURATION)
        except OSError as error:
            fail(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port", Exit.UNAVAILABLE)
        if not server.is_private:
            note(f"warning: {host} is reachable from other machines, and the connection is not encrypted")
        click.echo(f"{server.link()}\nThe link works once. Press Ctrl-C to stop.")
        server.run()
