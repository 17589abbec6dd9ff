"""Render failures grouped by cause: the cause first, then the stages that did not run because of it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from celery_statemanager.cli.rendering import formatting
from celery_statemanager.cli.rendering.text import Glyphs, Line, Span, clean, left, width, width_of, wrapped
from celery_statemanager.failures import FailedRows, FailureGroup, FailureReport

NOT_RUN = "not run"

_LONGEST_TAGS = 24
_SHORTEST_TAGS = 8
_MESSAGE_LINES = 3
_SHORTEST_MESSAGE = 20
_NARROW_INDENT = 6
"""Where the rows and the message begin if they have no room beside the tag."""


class FailureStyle(NamedTuple):
    """How to render failures.

    Attributes:
        tags: whether there is a column of tags.
        most_ranges: the maximum length of row ranges.
        most_rows: the number of rows above which only their number is shown; 0 for no limit.
        wrap: whether long rows and messages are wrapped, rather than shortened by the caller.
    """

    columns: int
    tags: bool
    most_ranges: int
    most_rows: int = 0
    wrap: bool = False


class _Widths(NamedTuple):
    """The widths of columns; ``rows`` is a minimum."""

    name: int
    tags: int
    rows: int


class _Entry(NamedTuple):
    """One line of a group, before it is aligned."""

    mark: str
    name: str
    style: str
    tags: Sequence[str]
    rows: str
    message: str


def failure_blocks(groups: Sequence[FailureGroup], style: FailureStyle, glyphs: Glyphs) -> list[list[Line]]:
    """Return the lines of each group: code, tag, rows and message, then what was not run."""
    entries = [list(_entries(group, style, glyphs)) for group in groups]
    every = [each for group in entries for each in group]
    names = max((len(each.name) for each in every), default=0)
    most = min(_LONGEST_TAGS, max(_SHORTEST_TAGS, style.columns // 4)) if style.tags else 0
    labels = min(max((width(_joined(each.tags)) for each in every), default=0), most)
    rows = 0 if style.wrap else max((width(each.rows) for each in every), default=0)
    widths = _Widths(names, labels, rows)
    return [[line for each in group for line in _lines(each, widths, style, glyphs)] for group in entries]


def others(report: FailureReport, shown: int, glyphs: Glyphs) -> list[Line]:
    """Return a line that counts the failures beyond the first groups, or no line."""
    hidden = report.groups[shown:]
    failed = report.other_failed + sum(len(group.rows) for group in hidden)
    not_run = report.other_not_run + sum(group.not_run_count for group in hidden)
    counts = ((failed, "more failed"), (not_run, "more not run"))
    more = ", ".join(f"{formatting.number(count)} {kind}" for count, kind in counts if count)
    return [[Span(f" {glyphs.ellipsis} and {more}, by other causes", "dim")]] if more else []


def _entries(group: FailureGroup, style: FailureStyle, glyphs: Glyphs) -> Iterator[_Entry]:
    message, cause = clean(group.text), group.cause
    if group.rows:
        name = formatting.status(cause.status, None)
        yield _Entry(glyphs.cross, name, "bad", [cause.tag], _rows(group.rows, style, glyphs), message)
        message = ""
    elif group.not_run:  # the failed stage is outside of what is watched
        message = f"stage {clean(cause.tag)!r} failed: {message or formatting.status(cause.status, None)}"
    for tags, rows in _merged(group.not_run):
        yield _Entry(" ", NOT_RUN, "warn", tags, _rows(rows, style, glyphs), message)


def _merged(not_run: Mapping[str, FailedRows]) -> list[tuple[list[str], FailedRows]]:
    """Merge the tags that have the same rows."""
    found: list[tuple[list[str], FailedRows]] = []
    for tag, rows in not_run.items():
        tags = next((tags for tags, others in found if rows == others), None)
        if tags is None:
            found.append(([tag], rows))
        else:
            tags.append(tag)
    return found


def _rows(rows: FailedRows, style: FailureStyle, glyphs: Glyphs) -> str:
    if style.most_rows and len(rows) > style.most_rows:
        return formatting.counted(len(rows), "row")
    return formatting.ranges(rows.first, style.most_ranges, glyphs.ellipsis, len(rows))


def _lines(entry: _Entry, widths: _Widths, style: FailureStyle, glyphs: Glyphs) -> Iterator[Line]:
    """Return one line if the entry fits or is not wrapped, else the rows and below them the message."""
    joined = _joined(entry.tags)
    tags = joined if len(entry.tags) == 1 or width(joined) <= widths.tags else f"{len(entry.tags)} stages"
    head = [
        Span(f" {entry.mark} {entry.name:<{widths.name}}  ", entry.style),
        Span(left(tags, widths.tags, glyphs.ellipsis) + "  " if widths.tags else "", "dim"),
    ]
    start = width_of(head)
    one_line = f"{left(entry.rows, max(widths.rows, width(entry.rows)))}  {entry.message}".rstrip()
    if not style.wrap or start + width(one_line) <= style.columns:
        yield [*head, Span(one_line)]
        return
    narrow = style.columns - start < _SHORTEST_MESSAGE
    indent = min(start, _NARROW_INDENT) if narrow else start
    room = max(1, style.columns - indent)
    rows = wrapped(entry.rows, room, style.most_ranges)
    message = wrapped(entry.message, room, _MESSAGE_LINES, glyphs.ellipsis)
    yield head if narrow else [*head, Span(rows.pop(0))]
    for each in (*rows, *message):
        if each:
            yield [Span(" " * indent + each)]


def _joined(tags: Sequence[str]) -> str:
    return ", ".join(map(clean, tags))
