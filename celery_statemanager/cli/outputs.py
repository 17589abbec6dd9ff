"""Show a job as JSON, as a table or as a live display."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

from celery_statemanager.cli.common import Exit, fail, note
from celery_statemanager.cli.follow import Follower, Until
from celery_statemanager.cli.model import JobModel
from celery_statemanager.cli.rendering.final_summary import final_summary
from celery_statemanager.cli.rendering.frame import Frame
from celery_statemanager.cli.rendering.header import View, worker_remark
from celery_statemanager.cli.rendering.lines import Output, Table, json_text
from celery_statemanager.errors import install_hint
from celery_statemanager.stores import Store

if TYPE_CHECKING:
    from rich.console import Console

Show = Callable[[Follower, Output], None]
"""Show a job until the follower ends.

Raises: KeyboardInterrupt, BrokenPipeError, StateManagerError.
"""


def choose(style: str | None, output: Output) -> Show:
    """Return the requested way to show a job, or the one that suits the output; exit if it is not available."""
    if style == "json" or (style is None and not output.terminal):
        return show_json
    if style == "table":
        return show_table
    if importlib.util.find_spec("rich") is None:
        return _fall_back(style, Exit.CONFIGURATION, "the live display needs rich", install_hint("monitor"))
    from celery_statemanager.cli.rendering.live import terminal

    console = terminal(no_color=output.no_color)
    if console is None:
        return _fall_back(
            style, Exit.USAGE, "the live display needs a terminal that can move its cursor", "use --format table"
        )
    return lambda follower, output: show_live(follower, output, console)


def show_board(store: Store, output: Output) -> None:
    """Draw all jobs on the terminal until Ctrl-C; exit if there is no terminal."""
    if not output.terminal:
        fail(
            "no job: write monitor-state JOB; list-state lists the jobs. Without JOB, monitor-state needs a terminal",
            Exit.USAGE,
        )
    if importlib.util.find_spec("rich") is None:
        fail(f"the display of all jobs needs rich: {install_hint('monitor')}", Exit.CONFIGURATION)
    from celery_statemanager.cli.rendering.board import Board
    from celery_statemanager.cli.rendering.live import terminal

    console = terminal(no_color=output.no_color)
    if console is None:
        fail("the display of all jobs needs a terminal that can move its cursor: use list-state", Exit.USAGE)
    Board(store, console).run()


def show_json(follower: Follower, output: Output) -> None:
    """Write a JSON object for each change."""
    for event in follower.events():
        if event is None:
            output.check()
        else:
            output.record(json_text(event))


def show_table(follower: Follower, output: Output) -> None:
    """Write a line for each change and a summary at the end; report missing workers on stderr."""
    model = JobModel(follower.job, follower.scope)
    standstill = None
    table = Table(follower.job, output.size.columns, output.glyphs)
    output.line(table.header())
    try:
        for event in follower.events():
            if event is None:
                output.check()
                model.loading = False
                standstill = _report_standstill(model, follower, standstill)
                continue
            model.apply(event.state)
            output.line(table.row(event.state))
    except KeyboardInterrupt:
        _conclude(model, follower, output)
        raise
    _conclude(model, follower, output)


def show_live(follower: Follower, output: Output, console: Console) -> None:
    """Draw the job on the terminal and print a summary at the end."""
    if follower.until is Until.NOW or (follower.until is Until.SETTLED and follower.job.settled):
        _show_once(follower, output)
        return
    from celery_statemanager.cli.rendering.live import LiveDisplay

    display = LiveDisplay(follower, console)
    try:
        display.run()
    finally:
        _conclude(display.model, follower, output)


def _show_once(follower: Follower, output: Output) -> None:
    model = JobModel(follower.job, follower.scope)
    for event in follower.events():
        if event is not None:
            model.apply(event.state)
    model.loading = False
    view = View(model, follower.now, liveness=follower.liveness)
    if model.over:
        _conclude(model, follower, output)
        return
    columns, rows = output.size
    for line in Frame(output.glyphs, hints=False).draw(view, columns, rows - 1):
        output.line(line)


def _conclude(model: JobModel, follower: Follower, output: Output) -> None:
    model.job = follower.job
    output.line([])
    for line in final_summary(
        View(model, follower.now, liveness=follower.liveness), output.size.columns, output.glyphs
    ):
        output.line(line)


def _report_standstill(model: JobModel, follower: Follower, before: str | None) -> str | None:
    """Write a note when the job stops making progress or the reason changes; return the reason."""
    model.job = follower.job
    view = View(model, follower.now, liveness=follower.liveness)
    found = view.standstill
    if found is not None and found != before:
        note(f"note: {found}: {worker_remark(view)}")
    return found


def _fall_back(style: str | None, code: Exit, problem: str, hint: str) -> Show:
    """Exit if live was requested, else fall back to a table."""
    if style is not None:
        fail(f"{problem}: {hint}", code)
    note(f"note: {problem}: {hint if code is Exit.CONFIGURATION else 'showing a table'}")
    return show_table
