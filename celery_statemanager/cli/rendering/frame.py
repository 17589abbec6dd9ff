"""Lay out the display of a job for a terminal's size. Pure, except that rows keep their lines between two displays."""

from __future__ import annotations

from itertools import islice

from celery_statemanager.cli.model import Column, Counts, JobModel, Row
from celery_statemanager.cli.rendering import formatting
from celery_statemanager.cli.rendering.bars import row_bar, tag_lines
from celery_statemanager.cli.rendering.failures import FailureStyle, failure_blocks, others
from celery_statemanager.cli.rendering.header import View, header, limits
from celery_statemanager.cli.rendering.text import (
    Glyphs,
    Line,
    Span,
    clean,
    cut,
    left,
    right,
    width,
    width_of,
    wrapped_line,
)
from celery_statemanager.failures import FailureReport
from celery_statemanager.stores.transactional import CellKey

WIDEST = 110
"""Maximum width of everything but messages: a number must stay near its label."""

_AIRY = 16
"""Minimum height of a terminal with blank lines and hints."""

_MANY = 1_000
_ROWS_WIDTH = 22
_LONG_UNCHANGED = 60.0


class Frame:
    """Draws a job repeatedly; a running row keeps its line until it ends."""

    def __init__(self, glyphs: Glyphs, *, hints: bool = True) -> None:
        self.glyphs = glyphs
        self._hints = hints
        self._places: list[CellKey] = []

    def draw(self, view: View, columns: int, rows: int) -> list[Line]:
        """Return at most ``rows`` lines of at most ``columns`` columns."""
        body = min(columns, WIDEST)
        gap: list[Line] = [[]] if rows >= _AIRY else []
        lines = header(view, body, self.glyphs)
        if gap:
            facts = lines + limits(view, self.glyphs)
            lines = [part for line in facts for part in wrapped_line(line, body, 1, 2, self.glyphs)]
        lines += gap + self._tags(view.model, body, max(1, (rows - len(lines) - 1) // 3))
        hint = [*gap, [Span(" Ctrl-C stops watching; the job continues", "dim")]] if gap and self._hints else []
        lines += self._cells(view, columns, rows - len(lines) - len(hint), gap)
        lines += hint
        return [cut(line, columns, self.glyphs.ellipsis) for line in lines[:rows]]

    def _tags(self, model: JobModel, columns: int, room: int) -> list[Line]:
        shown = [(column, model.counts(column)) for column in model.columns.values()]
        if len(shown) > room:
            shown = sorted(shown, key=_is_over)[: max(1, room - 1)]
        hidden = len(model.columns) - len(shown)
        lines = tag_lines(shown, columns, label_width(model, columns), self.glyphs)
        return [*lines, self._more(formatting.counted(hidden, "more tag"))] if hidden and room > 1 else lines

    def _cells(self, view: View, columns: int, room: int, gap: list[Line]) -> list[Line]:
        """Divide the space: failures get what running rows leave, and at least a third."""
        model, above = view.model, len(gap)
        report = model.failure_report()
        blocks = self._blocks(model, report, columns, room - len(model.running) - 2 * above)
        failures = sum(map(len, blocks)) + len(others(report, len(blocks), self.glyphs))
        need = [count + above if count else 0 for count in (len(model.running), failures)]
        second = min(need[1], max(room // 3, room - need[0], min(room // 2, 2 + above)))
        running = self._running(view, columns, min(need[0], room - second) - above)
        shown = self._failures(blocks, report, second - above)
        return [line for block in (running, shown) if block for line in (*gap, *block)]

    def _running(self, view: View, columns: int, room: int) -> list[Line]:
        model = view.model
        if room < 1 or not model.running:
            return []
        fits = len(model.running) <= room
        rows = self._choose(model.running, room if fits else room - 1)
        lines = [self._row(view, row, columns) for row in rows]
        hidden = len(model.running) - len(rows)
        return lines if fits else [*lines, self._more(f"{formatting.number(hidden)} more running")]

    def _choose(self, running: dict[CellKey, Row], room: int) -> list[Row]:
        """Keep shown rows on their lines; the line of a row that ended goes to the longest running hidden row."""
        kept: list[CellKey | None] = [key if key in running else None for key in self._places[:room]]
        kept += [None] * (room - len(kept))
        taken = {key for key in kept if key is not None}
        fresh = islice((key for key in running if key not in taken), room)
        places = [key if key is not None else next(fresh, None) for key in kept]
        self._places = [key for key in places if key is not None]
        return [running[key] for key in self._places]

    def _row(self, view: View, row: Row, columns: int) -> Line:
        model, glyphs = view.model, self.glyphs
        seconds = (view.now - row.timestamp).total_seconds() if row.timestamp else 0.0
        unchanged = bool(row.fraction) and seconds >= _LONG_UNCHANGED
        attempt = f"attempt {row.attempt} {glyphs.dot} " if row.attempt > 1 else ""
        return [
            Span(" " + right(str(row.task_index), index_width(model)) + "  "),
            *self._tag(model, row.tag, columns),
            *self._gauge(row, columns),
            Span(f"  {formatting.age(seconds):>4}  ", "warn" if unchanged else "dim"),
            Span(attempt, "warn"),
            Span(f"stalled {glyphs.dot} " if row.stalled else "", "bad"),
            Span(clean(row.message)),
        ]

    def _gauge(self, row: Row, columns: int) -> Line:
        room = 8 if columns < 80 else 12 if columns < 120 else 20
        if not row.fraction:
            word = "started" if row.status == 1 else f"status {row.status}"
            return [Span(left(word, room + 5, self.glyphs.ellipsis), "dim")]
        return [*row_bar(row.fraction, room, self.glyphs), Span(f" {formatting.percent(row.fraction):>4}")]

    def _failures(self, blocks: list[list[Line]], report: FailureReport, room: int) -> list[Line]:
        """Return the most frequent causes that fit, each with at least its first line, and a line for the others."""
        lines: list[Line] = []
        shown = 0
        for block in blocks:
            last = shown + 1 == len(report.groups) and not others(report, shown + 1, self.glyphs)
            left_over = room - len(lines) - (not last)
            if left_over < 1:
                break
            lines += block[:left_over]
            shown += 1
        return [*lines, *others(report, shown, self.glyphs)] if room >= 1 else []

    def _blocks(self, model: JobModel, report: FailureReport, columns: int, room: int) -> list[list[Line]]:
        """Return the lines of each cause; messages that are too long are wrapped if there is room for all of them."""
        style = FailureStyle(columns, len(model.columns) > 1, _ROWS_WIDTH, _MANY)
        blocks = failure_blocks(report.groups, style, self.glyphs)
        if len(blocks) > room or all(width_of(line) <= columns for block in blocks for line in block):
            return blocks
        wrapped = failure_blocks(report.groups, style._replace(wrap=True), self.glyphs)
        return wrapped if sum(map(len, wrapped)) <= room else blocks

    def _tag(self, model: JobModel, tag: str, columns: int) -> Line:
        if len(model.columns) < 2:
            return []
        return [Span(left(clean(tag), label_width(model, min(columns, WIDEST)), self.glyphs.ellipsis) + "  ", "dim")]

    def _more(self, what: str) -> Line:
        return [Span(f" {self.glyphs.ellipsis} and {what}", "dim")]


def label_width(model: JobModel, columns: int) -> int:
    """Return the width of the column of tags."""
    return min(max((width(clean(tag)) for tag in model.columns), default=0), 24, max(4, columns // 5))


def index_width(model: JobModel) -> int:
    """Return the width of the column of row indexes."""
    return max(3, len(str(model.job.num_tasks - 1)))


def _is_over(shown: tuple[Column, Counts]) -> bool:
    counts = shown[1]
    return counts.ended >= counts.expected
