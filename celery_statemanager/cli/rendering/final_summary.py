"""Render the summary that remains on the terminal: what finished, what failed and why, how long it took. Pure."""

from __future__ import annotations

from celery_statemanager.cli.model import Counts
from celery_statemanager.cli.rendering import formatting
from celery_statemanager.cli.rendering.bars import tag_lines
from celery_statemanager.cli.rendering.failures import FailureStyle, failure_blocks, others
from celery_statemanager.cli.rendering.frame import WIDEST, label_width
from celery_statemanager.cli.rendering.header import View, counts_line, notes, title
from celery_statemanager.cli.rendering.text import Glyphs, Line, Span, cut, width_of
from celery_statemanager.failures import FailureReport

MOST_CAUSES = 20
MOST_RANGES = 400
"""Maximum length of the row ranges of one cause."""


def final_summary(view: View, columns: int, glyphs: Glyphs) -> list[Line]:
    """Return the lines of the summary, for a job that is over or still in progress."""
    model, total = view.model, view.model.total()
    shown = [(column, model.counts(column)) for column in model.columns.values()]
    body = min(columns, WIDEST)
    lines: list[Line] = [
        title(view, glyphs),
        *_verdict(view, total, body, glyphs),
        *notes(view, glyphs),
        [],
        *tag_lines(shown, body, label_width(model, body), glyphs),
    ]
    failed = failure_lines(model.failure_report(never_begun=True), columns, glyphs, tags=len(model.columns) > 1)
    return [cut(line, columns, glyphs.ellipsis) for line in (*lines, *([[], *failed] if failed else []))]


def failure_lines(report: FailureReport, columns: int, glyphs: Glyphs, *, tags: bool) -> list[Line]:
    """Return the lines of the first causes, long rows and messages wrapped, and a line for the others."""
    style = FailureStyle(columns, tags, MOST_RANGES, wrap=True)
    blocks = failure_blocks(report.groups[:MOST_CAUSES], style, glyphs)
    return [*(line for block in blocks for line in block), *others(report, len(blocks), glyphs)]


def _verdict(view: View, total: Counts, columns: int, glyphs: Glyphs) -> list[Line]:
    took = formatting.duration(view.elapsed)
    if not view.model.over:
        verdict = [Span(f" {glyphs.dot} not settled", "busy"), Span(f" after {took}")]
    elif total.failed or total.not_run:
        verdict = [Span(f" {glyphs.cross} settled", "bad"), Span(f" in {took}")]
    else:
        verdict = [Span(f" {glyphs.tick} all finished", "good"), Span(f" in {took}")]
    counts = counts_line(total, glyphs, zeros=False)
    one_line = [*verdict, Span(": "), *counts]
    return [one_line] if width_of(one_line) <= columns else [verdict, [Span("   "), *counts]]
