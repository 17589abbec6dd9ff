"""A list of jobs as aligned columns. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from celery_statemanager.cli.rendering import formatting
from celery_statemanager.cli.rendering.text import Glyphs, Line, Span, clean, cut, fit, left, right, width
from celery_statemanager.overview import Overview, Phase
from celery_statemanager.records import JobRecord, to_datetime

PHASE_STYLES = {
    Phase.WAITING: "dim",
    Phase.RUNNING: "busy",
    Phase.FAILING: "bad",
    Phase.FINISHED: "good",
    Phase.FAILED: "bad",
    Phase.CANCELLED: "warn",
}

_HEAD = ("STATUS", "DONE", "FINISHED", "FAILED", "LAST WRITE")
_SHORTEST = 12
"""Columns that a job's name has at least."""


def job_table(listed: Sequence[Overview], now: datetime, columns: int, glyphs: Glyphs) -> list[Line]:
    """Give a head and a line a job, none wider than ``columns``; the name gets what the numbers leave."""
    rows = [_cells(each, now) for each in listed]
    widths = [max(map(len, column)) for column in zip(_HEAD, *rows)]
    names = [name(each.job, glyphs) for each in listed]
    room = max(_SHORTEST, columns - sum(widths) - 2 * len(widths))
    wide = min(room, max([3, *map(width, names)]))
    head: Line = [Span("  ".join([left("JOB", wide), *_aligned(_HEAD, widths)]), "dim")]
    lines = [head]
    for each, named, cells in zip(listed, names, rows):
        phase, *numbers = _aligned(cells, widths)
        lines.append(
            [
                Span(left(named, wide, glyphs.ellipsis) + "  "),
                Span(phase, PHASE_STYLES[each.phase]),
                Span("  " + "  ".join(numbers)),
            ]
        )
    return [cut(line, columns, glyphs.ellipsis) for line in lines]


def name(job: JobRecord, glyphs: Glyphs) -> str:
    """Give a job's name as people tell runs apart; a job marked deleted is hidden, and says so."""
    run = "" if job.run_token is None else f" {glyphs.dot} run {clean(job.run_token)}"
    return clean(job.job_id) + run + (" (hidden)" if job.tombstoned_at is not None else "")


def named(before: str, job: JobRecord, after: str, columns: int, glyphs: Glyphs) -> str:
    """Give a job's name between words; a long one is cut, so that the words are seen."""
    room = columns - width(before) - width(after)
    return f"{before}{fit(name(job, glyphs), max(room, _SHORTEST), glyphs.ellipsis)}{after}"


def _cells(each: Overview, now: datetime) -> tuple[str, ...]:
    summary = each.summary
    return (
        each.phase.value,
        formatting.percent(summary.fraction),
        f"{formatting.number(summary.finished)}/{formatting.number(summary.expected)}",
        formatting.number(summary.failed) if summary.failed else "-",
        formatting.age((now - to_datetime(each.job.last_activity)).total_seconds()),
    )


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    """The first column is a word, the others are numbers."""
    return [left(cells[0], widths[0]), *(right(cell, wide) for cell, wide in zip(cells[1:], widths[1:]))]
