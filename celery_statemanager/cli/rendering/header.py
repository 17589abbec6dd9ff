"""What stands above the bars, while a job runs and when it is over. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from celery_statemanager.cli.model import Board, Counts
from celery_statemanager.cli.rendering import formatting
from celery_statemanager.cli.rendering.text import Glyphs, Line, Span, clean, joined, spread
from celery_statemanager.records import to_datetime


@dataclass(frozen=True)
class View:
    """A board and what is known besides it.

    Attributes:
        now: by the store's clock.
        rate: cells per second; None while unknown.
        eta: seconds that the rest will take; None while unknown.
    """

    board: Board
    now: datetime
    connected: bool = True
    rate: float | None = None
    eta: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since the job was created, up to its end if it has one."""
        return max(0.0, (self._end - to_datetime(self.board.job.created_at)).total_seconds())

    @property
    def _end(self) -> datetime:
        settled = self.board.job.latches["settled"].decided_at
        if settled is not None:
            return to_datetime(settled)
        return self.board.last_write if self.board.over and self.board.last_write else self.now


def title(view: View, glyphs: Glyphs) -> Line:
    """Name the job and what of it is watched."""
    board = view.board
    parts: list[Line] = [
        [Span(clean(board.job.job_id), "head")],
        [Span(formatting.counted(board.job.num_tasks, "task"), "dim")],
    ]
    if board.job.run_token is not None:
        parts.append([Span(f"run {clean(board.job.run_token)}", "dim")])
    if board.scope.tag is not None:
        parts.append([Span(f"tag {clean(board.scope.tag)}", "dim")])
    if board.scope.task_index is not None:
        parts.append([Span(f"task {board.scope.task_index}", "dim")])
    return [Span(" "), *joined(parts, f" {glyphs.dot} ")]


def header(view: View, columns: int, glyphs: Glyphs) -> list[Line]:
    """Give the lines above the bars: names, time, counts, speed, and what must be told."""
    total = view.board.total()
    clock: Line = [*condition(view, total, glyphs), Span(f" {glyphs.dot} {formatting.duration(view.elapsed)} ")]
    lines = spread(title(view, glyphs), clock, columns)
    lines += spread([Span(" "), *counts_line(total, glyphs)], _speed(view, glyphs), columns)
    return lines + notes(view, glyphs)


def condition(view: View, total: Counts, glyphs: Glyphs) -> Line:
    """Say in a word how things are."""
    job = view.board.job
    if not view.connected:
        return [Span(f"reconnecting{glyphs.ellipsis}", "warn")]
    if view.board.loading:
        return [Span(f"reading{glyphs.ellipsis}", "dim")]
    if job.cancelled is not None:
        return [Span("cancelled", "bad")]
    if view.board.over:
        word = "settled" if job.settled else "all done"
        return [Span(word, "bad" if total.failed else "good")]
    return [Span("running", "busy")] if total.passed or total.running else [Span("waiting", "dim")]


def counts_line(total: Counts, glyphs: Glyphs, *, zeros: bool = True) -> Line:
    """Count the cells by class, in one order; those of empty classes too, so that each keeps its place."""
    finished = f"{formatting.number(total.finished)} of {formatting.number(total.expected)} finished"
    parts: list[Line] = [[Span(finished, "good" if total.finished else "dim")]]
    for name, style in (("running", "busy"), ("failed", "bad"), ("waiting", "")):
        value = getattr(total, name)
        if value or zeros:
            parts.append([Span(f"{formatting.number(value)} {name}", style if value else "dim")])
    return joined(parts, f" {glyphs.dot} ")


def notes(view: View, glyphs: Glyphs) -> list[Line]:
    """Tell what is special about the job."""
    job = view.board.job
    found: list[Line] = []
    if job.cancelled is not None:
        found.append([Span(f" {glyphs.cross} cancelled", "bad"), Span(_reason(job.cancelled.reason))])
    if job.tombstoned_at is not None:
        found.append([Span(" marked deleted: hidden from lists, collected later", "warn")])
    return found


def _reason(reason: str | None) -> str:
    return f": {clean(reason)}" if reason else ""


def _speed(view: View, glyphs: Glyphs) -> Line:
    if view.rate is None:
        return []
    eta = [] if view.eta is None else [Span(f" {glyphs.dot} ETA {formatting.duration(view.eta)}", "head")]
    return [Span(formatting.rate(view.rate)), *eta, Span(" ")]
