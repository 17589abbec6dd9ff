"""Measure, cut and clean styled text for a terminal. Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Span(NamedTuple):
    """Characters in one style: ``good``, ``busy``, ``bad``, ``warn``, ``dim``, ``head`` or none."""

    text: str
    style: str = ""


Line = list[Span]


@dataclass(frozen=True)
class Glyphs:
    """The characters to draw with; without colour, the segments of a bar have different characters.

    Attributes:
        half: half a column of a running bar; may be empty.
    """

    finished: str
    running: str
    failed: str
    not_run: str
    rest: str
    half: str
    tick: str
    cross: str
    dot: str
    times: str
    ellipsis: str


COLOURED = Glyphs("━", "━", "━", "─", "─", "╸", "✓", "✗", "·", "×", "…")
PLAIN = Glyphs("█", "▓", "×", "-", "·", "", "✓", "✗", "·", "×", "…")
ASCII = Glyphs("#", "=", "x", "-", ".", "", "ok", "x", "-", "x", "~")


def glyphs_for(encoding: str, *, colour: bool) -> Glyphs:
    """Return the characters that the encoding supports."""
    glyphs = COLOURED if colour else PLAIN
    try:
        "".join(vars(glyphs).values()).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return glyphs


def encodable(text: str, encoding: str) -> str:
    """Replace characters that the encoding does not support by question marks."""
    return text if text.isascii() else text.encode(encoding, "replace").decode(encoding)


def clean(text: str) -> str:
    """Make text printable on one line: spaces for line ends, no control or bidirectional characters."""
    if text.isprintable() and text.isascii():
        return text
    return "".join(
        char if char.isprintable() else " " if char.isspace() else ""
        for char in text
        if char not in "\N{VARIATION SELECTOR-15}\N{VARIATION SELECTOR-16}"
    )


def width(text: str) -> int:
    """Return the number of columns that clean text occupies."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def fit(text: str, columns: int, ellipsis: str = "…") -> str:
    """Shorten text to a number of columns."""
    if width(text) <= columns:
        return text
    room = columns - width(ellipsis)
    return _head(text, room) + ellipsis if room >= 0 else _head(text, columns)


def fit_middle(text: str, columns: int, ellipsis: str = "…") -> str:
    """Shorten text to a number of columns by leaving out its middle; names often differ at the end."""
    room = columns - width(ellipsis)
    if width(text) <= columns or room < 2:
        return fit(text, columns, ellipsis)
    end = _head(text[::-1], room // 2)[::-1]
    return _head(text, room - width(end)) + ellipsis + end


def left(text: str, columns: int, ellipsis: str = "…") -> str:
    """Return text left-aligned in exactly this number of columns."""
    cut = fit(text, columns, ellipsis)
    return cut + " " * (columns - width(cut))


def right(text: str, columns: int, ellipsis: str = "…") -> str:
    """Return text right-aligned in exactly this number of columns."""
    cut = fit(text, columns, ellipsis)
    return " " * (columns - width(cut)) + cut


def wrapped(text: str, columns: int, most: int, ellipsis: str = "…") -> list[str]:
    """Wrap text after spaces and commas into at most ``most`` lines; the last one is shortened."""
    lines: list[str] = []
    rest = text.strip()
    while len(lines) < most - 1 and width(rest) > columns:
        head = _head(rest, columns)
        end = len(head) if rest[len(head)] == " " else max(head.rfind(" "), head.rfind(",") + 1)
        at = end if end > 0 else max(len(head), 1)
        lines.append(rest[:at].rstrip())
        rest = rest[at:].lstrip()
    return [*lines, fit(rest, columns, ellipsis)]


def width_of(line: Iterable[Span]) -> int:
    """Return the number of columns of a line."""
    return sum(width(span.text) for span in line)


def cut(line: Sequence[Span], columns: int, ellipsis: str = "…") -> Line:
    """Shorten a line to a number of columns."""
    if width_of(line) <= columns:
        return list(line)
    kept: Line = []
    for span in line:
        room = columns - width_of(kept)
        if width(span.text) >= room:
            return [*kept, Span(_head(span.text, max(room - len(ellipsis), 0)) + fit(ellipsis, room), span.style)]
        kept.append(span)
    return kept


def wrapped_line(line: Sequence[Span], columns: int, indent: int, most: int, glyphs: Glyphs) -> list[Line]:
    """Wrap a line between its parts, or at spaces, into at most ``most`` lines; the later ones are indented."""
    text = "".join(span.text for span in line)
    lines: list[Line] = []
    start, searched, room = 0, indent, columns
    while len(lines) < most - 1 and width(text[start:]) > room:
        end = start + len(_head(text[start:], room)) + 1
        for gap in (f" {glyphs.dot} ", " "):
            at = text.rfind(gap, searched, end + len(gap) - 1)
            if at > start:
                break
        else:
            break
        lines.append(_part(line, start, at))
        start = searched = at + len(gap)
        room = columns - indent
    lines.append(_part(line, start, len(text)))
    return [lines[0], *([Span(" " * indent), *later] for later in lines[1:])]


def spread(start: Line, end: Line, columns: int) -> list[Line]:
    """Return two parts at the two ends of one line, or on two lines if they do not fit."""
    gap = columns - width_of(start) - width_of(end)
    if not end:
        return [start]
    return [start, [Span(" "), *end]] if gap < 2 else [[*start, Span(" " * gap), *end]]


def joined(parts: Iterable[Line], separator: str) -> Line:
    """Join parts of a line with a dim separator."""
    line: Line = []
    for part in parts:
        line += [Span(separator, "dim"), *part] if line else part
    return line


def plain(line: Iterable[Span]) -> str:
    """Return the text of a line without styles."""
    return "".join(span.text for span in line).rstrip()


def _part(line: Iterable[Span], start: int, end: int) -> Line:
    """Return the spans between two positions of a line's text."""
    found: Line = []
    for span in line:
        text = span.text[max(start, 0) : max(end, 0)]
        found += [Span(text, span.style)] if text else []
        start, end = start - len(span.text), end - len(span.text)
    return found


def _columns(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _head(text: str, columns: int) -> str:
    if text.isascii():
        return text[: max(columns, 0)]
    taken = 0
    for at, char in enumerate(text):
        taken += _columns(char)
        if taken > columns:
            return text[:at]
    return text
