"""The summary that stays: what finished, what failed and where, how long it took. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from celery_statemanager.cli.model import Board, Counts
from celery_statemanager.cli.rendering import formatting
from celery_statemanager.cli.rendering.bars import tag_lines
from celery_statemanager.cli.rendering.frame import WIDEST, label_width
from celery_statemanager.cli.rendering.header import View, counts_line, notes, title
from celery_statemanager.cli.rendering.text import Glyphs, Line, Span, clean, cut, left, width, width_of, wrapped
from celery_statemanager.indexset import IndexSet

MOST_KINDS = 20
MOST_RANGES = 400
"""Characters of ranges shown for one kind of failure."""

_MESSAGE_LINES = 3


def closing(view: View, columns: int, glyphs: Glyphs) -> list[Line]:
    """Give the lines of the summary, for a job that is over as for one that goes on."""
    board, total = view.board, view.board.total()
    shown = [(column, board.counts(column)) for column in board.columns.values()]
    body = min(columns, WIDEST)
    lines: list[Line] = [
        title(view, glyphs),
        *_verdict(view, total, body, glyphs),
        *notes(view, glyphs),
        [],
        *tag_lines(shown, body, label_width(board, body), glyphs),
    ]
    failed = list(_failed(board, columns, glyphs))
    return [cut(line, columns, glyphs.ellipsis) for line in (*lines, *([[], *failed] if failed else []))]


def _verdict(view: View, total: Counts, columns: int, glyphs: Glyphs) -> list[Line]:
    took = formatting.duration(view.elapsed)
    if not view.board.over:
        said = [Span(f" {glyphs.dot} not settled", "busy"), Span(f" after {took}")]
    elif total.failed:
        said = [Span(f" {glyphs.cross} settled", "bad"), Span(f" in {took}")]
    else:
        said = [Span(f" {glyphs.tick} all finished", "good"), Span(f" in {took}")]
    counts = counts_line(total, glyphs, zeros=False)
    one_line = [*said, Span(": "), *counts]
    return [one_line] if width_of(one_line) <= columns else [said, [Span("   "), *counts]]


def _failed(board: Board, columns: int, glyphs: Glyphs) -> Iterator[Line]:
    """Tell each kind of failure with its rows, the most frequent first."""
    rows_of = {failure: IndexSet(rows) for failure, rows in board.failures.items()}
    for failure, rows in board.never_begun():
        rows_of[failure] = rows_of.get(failure, IndexSet()).union(rows)
    kinds = sorted(rows_of.items(), key=lambda kind: -len(kind[1]))
    told = kinds[:MOST_KINDS]
    names = [formatting.status(failure.status, None) for failure, _ in told]
    name_width = max(map(len, names), default=0)
    labels = label_width(board, min(columns, WIDEST)) if len(board.columns) > 1 else 0
    for (failure, rows), name in zip(told, names):
        head = [
            Span(f" {glyphs.cross} {name:<{name_width}}  ", "bad"),
            Span(left(clean(failure.tag), labels, glyphs.ellipsis) + "  " if labels else "", "dim"),
        ]
        yield from _kind(
            head, formatting.ranges(rows, MOST_RANGES, glyphs.ellipsis), clean(failure.message), columns, glyphs
        )
    hidden = kinds[MOST_KINDS:]
    if hidden:
        tasks = formatting.counted(sum(len(rows) for _, rows in hidden), "task")
        yield [
            Span(f" {glyphs.ellipsis} and {formatting.counted(len(hidden), 'more kind')} of failure, {tasks}", "dim")
        ]


def _kind(head: Line, ranges: str, message: str, columns: int, glyphs: Glyphs) -> Iterator[Line]:
    """Tell one kind of failure: in one line if it fits, else the message below the rows, both broken where needed."""
    start = width_of(head)
    room = max(20, columns - start)
    if start + width(ranges) + 2 + width(message) <= columns:
        yield [*head, Span(f"{ranges}  {message}".rstrip())]
        return
    rows = wrapped(ranges, room, MOST_RANGES)
    told = wrapped(message, room, _MESSAGE_LINES, glyphs.ellipsis)
    yield [*head, Span(rows[0])]
    yield from ([Span(" " * start + each)] for each in (*rows[1:], *told) if each)
