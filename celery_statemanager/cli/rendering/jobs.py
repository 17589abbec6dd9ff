"""Render a list of jobs as aligned columns. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from celery_statemanager.cli.rendering import formatting
from celery_statemanager.cli.rendering.text import Glyphs, Line, Span, clean, cut, fit_middle, left, right, width
from celery_statemanager.overview import Overview, Phase
from celery_statemanager.records import JobRecord, to_datetime

PHASE_STYLES = {
    Phase.WAITING: "dim",
    Phase.RUNNING: "busy",
    Phase.FAILING: "bad",
    Phase.PAUSED: "warn",
    Phase.FINISHED: "good",
    Phase.FAILED: "bad",
    Phase.CANCELLED: "warn",
}

_HEAD = ("STATUS", "DONE", "FINISHED", "FAILED", "LAST WRITE")
_SHORTEST = 12
"""Minimum width of a job's name."""


def job_table(listed: Sequence[Overview], now: datetime, columns: int, glyphs: Glyphs) -> list[Line]:
    """Return a header and a line for each job, at most ``columns`` wide; names get the space beside the numbers."""
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
                Span(left(fit_middle(named, wide, glyphs.ellipsis), wide) + "  "),
                Span(phase, PHASE_STYLES[each.phase]),
                Span("  " + "  ".join(numbers)),
            ]
        )
    return [cut(line, columns, glyphs.ellipsis) for line in lines]


def name(job: JobRecord, glyphs: Glyphs) -> str:
    """Return a job's name with its run token and, if it is marked deleted, the word hidden."""
    run = "" if job.run_token is None else f" {glyphs.dot} run {clean(job.run_token)}"
    return clean(job.job_id) + run + (" (hidden)" if job.tombstoned_at is not None else "")


def generation(job: JobRecord) -> list[Line]:
    """Return the number of a job's generation as a part of its title, unless it is the first."""
    number = job.generation.number
    return [] if number == 1 else [[Span(f"generation {number}", "dim")]]


def named(before: str, job: JobRecord, after: str, columns: int, glyphs: Glyphs) -> str:
    """Return a job's name between two texts; a long name is shortened so that both texts stay visible."""
    room = columns - width(before) - width(after)
    return f"{before}{fit_middle(name(job, glyphs), max(room, _SHORTEST), glyphs.ellipsis)}{after}"


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
    """Align the first column, a word, to the left and the numbers to the right."""
    return [left(cells[0], widths[0]), *(right(cell, wide) for cell, wide in zip(cells[1:], widths[1:]))]
