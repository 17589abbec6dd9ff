"""Write lines to standard output: JSON for programs, aligned columns for people."""

from __future__ import annotations

import os
import select
import shutil
import sys
from datetime import datetime, timezone

import click

from celery_statemanager.cli.rendering import formatting
from celery_statemanager.cli.rendering.text import (
    Glyphs,
    Line,
    Span,
    clean,
    cut,
    encodable,
    glyphs_for,
    left,
    plain,
    width,
)
from celery_statemanager.codec import compact, event_to_wire
from celery_statemanager.models import State, StateEvent
from celery_statemanager.records import JobRecord, to_datetime

PIPE_WIDTH = 80

STYLES: dict[str, dict[str, object]] = {
    "good": {"fg": "green"},
    "busy": {"fg": "cyan"},
    "bad": {"fg": "red"},
    "warn": {"fg": "yellow"},
    "dim": {"dim": True},
    "head": {"bold": True},
}


class Output:
    """Standard output, flushed after each line.

    Raises: BrokenPipeError – the reader has exited.
    """

    def __init__(self, *, no_color: bool = False) -> None:
        self._bytes = sys.stdout.buffer
        self.no_color = no_color or bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
        self.terminal = sys.stdout.isatty()
        self.encoding = sys.stdout.encoding or "ascii"
        self.colour = self.terminal and not self.no_color
        self.glyphs = glyphs_for(self.encoding, colour=self.colour)
        self._poll = None if self.terminal else _hang_up_poll()

    @property
    def size(self) -> os.terminal_size:
        """The terminal's size, or a default for a pipe."""
        return shutil.get_terminal_size((PIPE_WIDTH, 24))

    def record(self, text: str) -> None:
        """Write JSON text, in UTF-8 whatever the terminal's encoding."""
        self._bytes.write(text.encode() + b"\n")
        self._bytes.flush()

    def line(self, line: Line) -> None:
        """Write a line, in colour on a terminal that shows it."""
        text = painted(line) if self.colour else plain(line)
        self._bytes.write(encodable(text, self.encoding).encode(self.encoding) + b"\n")
        self._bytes.flush()

    def fitted(self, line: Line) -> None:
        """Write a line, shortened to the terminal's width."""
        self.line(cut(line, self.size.columns, self.glyphs.ellipsis))

    def check(self) -> None:
        """Check without writing whether the reader is still there."""
        if self._poll is not None and self._poll.poll(0):
            raise BrokenPipeError


class Table:
    """Render states as aligned columns: time, task, tag, status, message."""

    def __init__(self, job: JobRecord, columns: int, glyphs: Glyphs) -> None:
        self.columns = columns
        self._glyphs = glyphs
        self._index = max(4, len(str(job.num_tasks - 1)))
        planned = max((width(clean(tag)) for tag in job.plan.tags), default=0) if job.plan else 12
        self._tag = min(max(planned, 3), 20, max(8, columns // 5))
        today = datetime.now(timezone.utc).astimezone().date()
        self._time = "%H:%M:%S" if to_datetime(job.created_at).astimezone().date() == today else "%m-%d %H:%M:%S"
        self._time_width = len(datetime.now(timezone.utc).strftime(self._time))

    def header(self) -> Line:
        """Return the line with the names of the columns."""
        time = left("TIME", self._time_width)
        return [Span(f"{time}  {'TASK':>{self._index}}  {left('TAG', self._tag)}  {'STATUS':<11}  MESSAGE", "dim")]

    def row(self, state: State) -> Line:
        """Return the line of a state."""
        moment = state.timestamp.astimezone().strftime(self._time) if state.timestamp else ""
        tag = left(clean(state.tag), self._tag, self._glyphs.ellipsis)
        style = "good" if state.finished else "bad" if state.failed else ""
        attempt = f"attempt {state.attempt} {self._glyphs.dot} " if state.attempt > 1 else ""
        line = [
            Span(f"{left(moment, self._time_width)}  ", "dim"),
            Span(f"{state.task_index:>{self._index}}  {tag}  "),
            Span(f"{formatting.status(state.status, state.fraction):<11}", style),
            Span(f"  {attempt}"),
            Span(f"stalled {self._glyphs.dot} " if state.stalled else "", "warn"),
            Span(clean(state.message or "")),
        ]
        return cut(line, self.columns, self._glyphs.ellipsis)


def json_text(event: StateEvent) -> str:
    """Return an event as one line of JSON."""
    return compact(event_to_wire(event))


def painted(line: Line) -> str:
    """Return the text of a line with the escape sequences of its colours."""
    return "".join(
        click.style(span.text, **STYLES[span.style]) if span.style else span.text  # type: ignore[arg-type]
        for span in line
    )


def _hang_up_poll() -> select.poll | None:
    """Return a poll for the other end of a pipe being closed; None if standard output is not a file."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return None
    poll = select.poll()
    poll.register(descriptor, 0)
    return poll
