"""The ways to show a job, and which of them suits the output."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

from celery_statemanager.cli.common import Exit, fail, note
from celery_statemanager.cli.follow import Follower, Until
from celery_statemanager.cli.model import Board
from celery_statemanager.cli.rendering.final_summary import closing
from celery_statemanager.cli.rendering.frame import Frame
from celery_statemanager.cli.rendering.header import View
from celery_statemanager.cli.rendering.lines import Output, Table, json_text

if TYPE_CHECKING:
    from rich.console import Console

Show = Callable[[Follower, Output], None]
"""Shows a job until the follower ends.

Raises: KeyboardInterrupt, BrokenPipeError, StateManagerError.
"""

INSTALL = 'pip install "celery-statemanager[monitor]"'


def choose(style: str | None, outlet: Output) -> Show:
    """Give the way asked for, or the one that suits the output; end the command where it is not to be had."""
    if style == "json" or (style is None and not outlet.terminal):
        return show_json
    if style == "table":
        return show_table
    if importlib.util.find_spec("rich") is None:
        return _instead(style, Exit.CONFIGURATION, "bars need rich", INSTALL)
    from celery_statemanager.cli.rendering.live import terminal

    console = terminal(no_color=outlet.no_color)
    if console is None:
        return _instead(style, Exit.USAGE, "bars need a terminal that can move its cursor", "use --format table")
    return lambda follower, outlet: show_live(follower, outlet, console)


def show_json(follower: Follower, outlet: Output) -> None:
    """Write an object for each change."""
    for event in follower.events():
        if event is None:
            outlet.check()
        else:
            outlet.record(json_text(event))


def show_table(follower: Follower, outlet: Output) -> None:
    """Write a line for each change, and a summary at the end."""
    board = Board(follower.job, follower.scope)
    table = Table(follower.job, outlet.size.columns, outlet.glyphs)
    outlet.line(table.head())
    try:
        for event in follower.events():
            if event is None:
                outlet.check()
                continue
            board.apply(event.state)
            outlet.line(table.row(event.state))
    except KeyboardInterrupt:
        _conclude(board, follower, outlet)
        raise
    _conclude(board, follower, outlet)


def show_live(follower: Follower, outlet: Output, console: Console) -> None:
    """Draw the job on the terminal, and leave a summary there."""
    if follower.until is Until.NOW or (follower.until is Until.SETTLED and follower.job.settled):
        _show_once(follower, outlet)
        return
    from celery_statemanager.cli.rendering.live import LivePicture

    picture = LivePicture(follower, console)
    try:
        picture.run()
    finally:
        _conclude(picture.board, follower, outlet)


def _show_once(follower: Follower, outlet: Output) -> None:
    board = Board(follower.job, follower.scope)
    for event in follower.events():
        if event is not None:
            board.apply(event.state)
    board.loading = False
    view = View(board, follower.now)
    if board.over:
        _conclude(board, follower, outlet)
        return
    columns, rows = outlet.size
    for line in Frame(outlet.glyphs, hints=False).draw(view, columns, rows - 1):
        outlet.line(line)


def _conclude(board: Board, follower: Follower, outlet: Output) -> None:
    board.job = follower.job
    outlet.line([])
    for line in closing(View(board, follower.now), outlet.size.columns, outlet.glyphs):
        outlet.line(line)


def _instead(style: str | None, code: Exit, why: str, mend: str) -> Show:
    """Fall back to a table where live was not asked for by name."""
    if style is not None:
        fail(f"{why}: {mend}", code)
    note(f"note: {why}: {mend if code is Exit.CONFIGURATION else 'showing a table'}")
    return show_table
