"""Text that fits a terminal: measured, cut, cleaned, with a style's name beside it. Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Span(NamedTuple):
    """Some characters of one style: ``good``, ``busy``, ``bad``, ``warn``, ``dim``, ``head`` or none."""

    text: str
    style: str = ""


Line = list[Span]


@dataclass(frozen=True)
class Glyphs:
    """The characters of a picture; the four of a bar differ where colour does not tell them apart.

    Attributes:
        half: half a column of a running bar; empty where there is none.
    """

    finished: str
    running: str
    failed: str
    rest: str
    half: str
    tick: str
    cross: str
    dot: str
    times: str
    ellipsis: str


COLOURED = Glyphs("━", "━", "━", "─", "╸", "✓", "✗", "·", "×", "…")
PLAIN = Glyphs("█", "▓", "×", "·", "", "✓", "✗", "·", "×", "…")
ASCII = Glyphs("#", "=", "x", ".", "", "ok", "x", "-", "x", "~")


def glyphs_for(encoding: str, *, colour: bool) -> Glyphs:
    """Choose the characters that an encoding can say."""
    glyphs = COLOURED if colour else PLAIN
    try:
        "".join(vars(glyphs).values()).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return glyphs


def sayable(text: str, encoding: str) -> str:
    """Put a question mark for what an encoding cannot say."""
    return text if text.isascii() else text.encode(encoding, "replace").decode(encoding)


def clean(text: str) -> str:
    """Make foreign text harmless in one line: blanks for line ends, nothing that moves a cursor or turns text round."""
    if text.isprintable() and text.isascii():
        return text
    return "".join(
        char if char.isprintable() else " " if char.isspace() else ""
        for char in text
        if char not in "\N{VARIATION SELECTOR-15}\N{VARIATION SELECTOR-16}"
    )


def width(text: str) -> int:
    """Count the columns that clean text takes."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def fit(text: str, columns: int, ellipsis: str = "…") -> str:
    """Cut text that is too wide."""
    if width(text) <= columns:
        return text
    room = columns - width(ellipsis)
    return _head(text, room) + ellipsis if room >= 0 else _head(text, columns)


def left(text: str, columns: int, ellipsis: str = "…") -> str:
    """Give exactly so many columns, text at the left."""
    cut = fit(text, columns, ellipsis)
    return cut + " " * (columns - width(cut))


def right(text: str, columns: int, ellipsis: str = "…") -> str:
    """Give exactly so many columns, text at the right."""
    cut = fit(text, columns, ellipsis)
    return " " * (columns - width(cut)) + cut


def wrapped(text: str, columns: int, most: int, ellipsis: str = "…") -> list[str]:
    """Break text into lines, after blanks and commas where there are any; at most so many, the last one cut."""
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
    """Count the columns of a line."""
    return sum(width(span.text) for span in line)


def cut(line: Sequence[Span], columns: int, ellipsis: str = "…") -> Line:
    """Cut a line that is too wide."""
    if width_of(line) <= columns:
        return list(line)
    kept: Line = []
    for span in line:
        room = columns - width_of(kept)
        if width(span.text) >= room:
            return [*kept, Span(_head(span.text, max(room - len(ellipsis), 0)) + fit(ellipsis, room), span.style)]
        kept.append(span)
    return kept


def spread(start: Line, end: Line, columns: int) -> list[Line]:
    """Put two parts at the ends of one line or, where they do not fit, under each other."""
    gap = columns - width_of(start) - width_of(end)
    if not end:
        return [start]
    return [start, end] if gap < 2 else [[*start, Span(" " * gap), *end]]


def joined(parts: Iterable[Line], separator: str) -> Line:
    """Join parts of a line, a dim separator between them."""
    line: Line = []
    for part in parts:
        line += [Span(separator, "dim"), *part] if line else part
    return line


def plain(line: Iterable[Span]) -> str:
    """Give the bare text of a line."""
    return "".join(span.text for span in line).rstrip()


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
