"""Draw the bars of tags and of running rows. Pure."""

from __future__ import annotations

from celery_statemanager.cli.model import Column, Counts
from celery_statemanager.cli.rendering.formatting import number, percent
from celery_statemanager.cli.rendering.text import Glyphs, Line, Span, clean, left, right, width, width_of

LONGEST = 80
_SHORTEST = 6


def tag_bar(counts: Counts, columns: int, glyphs: Glyphs) -> Line:
    """Draw the bar of a tag: finished, running (weighted by progress), failed, not run, waiting."""
    finished, running, failed, not_run = _segments(counts, columns)
    rest = columns - finished - running - failed - not_run
    drawn = [
        Span(glyphs.finished * finished, "good"),
        Span(glyphs.running * running, "busy"),
        Span(glyphs.failed * failed, "bad"),
        Span(glyphs.not_run * not_run, "bad"),
        Span(glyphs.rest * rest, "dim"),
    ]
    return [span for span in drawn if span.text]


def row_bar(fraction: float, columns: int, glyphs: Glyphs) -> Line:
    """Draw the bar of one running cell."""
    halves = int(fraction * columns * 2 + 1e-9)
    done = glyphs.running * (halves // 2) + (glyphs.half if halves % 2 else "")
    drawn = [Span(done, "busy"), Span(glyphs.rest * (columns - len(done)), "dim")]
    return [span for span in drawn if span.text]


def tag_lines(shown: list[tuple[Column, Counts]], columns: int, labels: int, glyphs: Glyphs) -> list[Line]:
    """Return a line for each tag: name, bar, percentage, finished of expected, failed; numbers aligned."""
    ends = _ends(shown)
    room = columns - labels - width_of(ends[0]) - 4 if ends else 0
    bar = min(room, LONGEST) if room >= _SHORTEST else 0
    return [
        [
            Span(" " + left(clean(column.tag), labels, glyphs.ellipsis) + "  ", "" if column.counts else "dim"),
            *tag_bar(counts, bar, glyphs),
            *end,
        ]
        for (column, counts), end in zip(shown, ends)
    ]


def _ends(shown: list[tuple[Column, Counts]]) -> list[Line]:
    done = [f"{number(counts.finished)}/{number(counts.expected)}" for _, counts in shown]
    remarks = [_remark(column, counts) for column, counts in shown]
    wide, far = max(map(width, done), default=0), max(map(width, remarks), default=0)
    return [
        [
            Span(f" {percent(counts.fraction):>4}", "head"),
            Span("  " + right(each, wide)),
            Span("  " + right(remark, far) if far else "", "bad" if counts.failed or counts.not_run else "dim"),
        ]
        for (_, counts), each, remark in zip(shown, done, remarks)
    ]


def _remark(column: Column, counts: Counts) -> str:
    failed = f"{number(counts.failed)} failed" if counts.failed else ""
    not_run = f"{number(counts.not_run)} not run" if counts.not_run else ""
    return ", ".join(filter(None, [failed, not_run, "" if column.counts else "not planned"]))


def _segments(counts: Counts, columns: int) -> tuple[int, int, int, int]:
    """Divide the columns; a failure is always visible, and the bar is full only when all cells have ended."""
    if not counts.expected or columns <= 0:
        return 0, 0, 0, 0
    scale = columns / counts.expected
    failed = max(1, int(counts.failed * scale)) if counts.failed else 0
    not_run = min(max(1, int(counts.not_run * scale)), columns - failed) if counts.not_run else 0
    ended = columns if counts.ended >= counts.expected else int(counts.ended * scale + 1e-9)
    finished = max(0, ended - failed - not_run)
    if not counts.finished:  # what rounding leaves over
        failed, not_run, finished = (failed, not_run + finished, 0) if not_run else (failed + finished, 0, 0)
    running = int(counts.passed * scale + 1e-9) - finished - failed - not_run
    return finished, max(0, min(running, columns - finished - failed - not_run)), failed, not_run
