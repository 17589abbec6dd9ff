"""The summary that stays: what finished, what failed and where, how long it took. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from celery_statemanager.cli.board import Board, Counts, Failure
from celery_statemanager.cli.rendering import words
from celery_statemanager.cli.rendering.bars import tag_lines
from celery_statemanager.cli.rendering.frame import WIDEST, label_width
from celery_statemanager.cli.rendering.header import View, notes, title
from celery_statemanager.cli.rendering.text import Glyphs, Line, Span, clean, cut, fit, joined, width_of
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
        _verdict(view, total, glyphs),
        *notes(view, glyphs),
        [],
        *tag_lines(shown, body, label_width(board, body), glyphs),
    ]
    failed = list(_failed(board, columns, glyphs))
    return [cut(line, columns, glyphs.ellipsis) for line in (*lines, *([[], *failed] if failed else []))]


def _verdict(view: View, total: Counts, glyphs: Glyphs) -> Line:
    took = words.duration(view.elapsed)
    if not view.board.over:
        mark, rest = Span(f" {glyphs.dot} not settled", "busy"), f" after {took}: "
    elif total.failed:
        mark, rest = Span(f" {glyphs.cross} settled", "bad"), f" in {took}: "
    else:
        mark, rest = Span(f" {glyphs.tick} all finished", "good"), f" in {took}: "
    return [mark, Span(rest), *_totals(total, glyphs)]


def _totals(total: Counts, glyphs: Glyphs) -> Line:
    finished = Span(
        f"{words.number(total.finished)} of {words.number(total.expected)} finished", "good" if total.finished else ""
    )
    others = (("failed", "bad"), ("running", "busy"), ("waiting", ""))
    values = [(getattr(total, name), name, style) for name, style in others]
    parts = [[Span(f"{words.number(value)} {name}", style)] for value, name, style in values if value]
    return joined([[finished], *parts], f" {glyphs.dot} ")


def _failed(board: Board, columns: int, glyphs: Glyphs) -> Iterator[Line]:
    """Tell each kind of failure with its rows, the most frequent first."""
    kinds = [(failure, IndexSet(rows)) for failure, rows in board.failures.items()]
    kinds = [*sorted(kinds, key=lambda kind: -len(kind[1])), *board.never_begun()]
    tags = len(board.columns) > 1
    for failure, rows in kinds[:MOST_KINDS]:
        yield from _kind(failure, rows, columns, glyphs, tags=tags)
    hidden = kinds[MOST_KINDS:]
    if hidden:
        tasks = words.counted(sum(len(rows) for _, rows in hidden), "task")
        yield [Span(f" {glyphs.ellipsis} and {words.counted(len(hidden), 'more kind')} of failure, {tasks}", "dim")]


def _kind(failure: Failure, rows: IndexSet, columns: int, glyphs: Glyphs, *, tags: bool) -> Iterator[Line]:
    head: Line = [
        Span(f" {glyphs.cross} {words.status(failure.status, None)}", "bad"),
        Span(f"  {clean(failure.tag)}" if tags else "", "dim"),
        Span(f"  {_ranges(rows, glyphs)}"),
    ]
    message = clean(failure.message)
    if width_of(head) + 2 + len(message) <= columns:
        yield [*head, Span(f"  {message}")] if message else head
        return
    yield from _wrapped(head, columns)
    told = textwrap.wrap(message, max(20, columns - 4), max_lines=_MESSAGE_LINES, placeholder=f" {glyphs.ellipsis}")
    yield from ([Span(f"   {each}")] for each in told)


def _wrapped(head: Line, columns: int) -> Iterator[Line]:
    """Break a long list of ranges at its commas."""
    if width_of(head) <= columns:
        yield head
        return
    *names, ranges = head
    parts = textwrap.wrap(ranges.text.replace(",", ", "), max(20, columns - width_of(names) - 2))
    yield [*names, Span(f"  {parts[0]}")]
    yield from ([Span(" " * (width_of(names) + 2) + part)] for part in parts[1:])


def _ranges(rows: IndexSet, glyphs: Glyphs) -> str:
    text = str(rows)
    count = f" ({words.number(len(rows))})" if len(rows.ranges) > 1 or len(rows) > 2 else ""
    return fit(text, MOST_RANGES, glyphs.ellipsis) + count
