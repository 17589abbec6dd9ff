"""One picture of a job, laid out for a terminal's size. Pure but for the places that rows keep between pictures."""

from __future__ import annotations

from itertools import islice

from celery_statemanager.cli.model import Board, CellKey, Column, Counts, Failure, Row
from celery_statemanager.cli.rendering import formatting
from celery_statemanager.cli.rendering.bars import row_bar, tag_lines
from celery_statemanager.cli.rendering.header import View, header
from celery_statemanager.cli.rendering.text import Glyphs, Line, Span, clean, cut, left, right, width
from celery_statemanager.indexset import IndexSet

WIDEST = 110
"""Columns beyond which only messages go on: a number is read together with its label."""

_AIRY = 16
"""Rows from which on there is room for blank lines and hints."""

_MANY = 1_000
_ROWS_WIDTH = 22
_STALLED = 60.0


class Frame:
    """Draws a job again and again; a running row keeps its line for as long as it runs."""

    def __init__(self, glyphs: Glyphs, *, hints: bool = True) -> None:
        self.glyphs = glyphs
        self._hints = hints
        self._places: list[CellKey] = []

    def draw(self, view: View, columns: int, rows: int) -> list[Line]:
        """Give at most ``rows`` lines of at most ``columns`` columns."""
        body = min(columns, WIDEST)
        gap: list[Line] = [[]] if rows >= _AIRY else []
        lines = header(view, body, self.glyphs)
        lines += gap + self._tags(view.board, body, max(1, (rows - len(lines) - 1) // 3))
        hint = [*gap, [Span(" Ctrl-C stops watching; the job goes on", "dim")]] if gap and self._hints else []
        lines += self._cells(view, columns, rows - len(lines) - len(hint), gap)
        lines += hint
        return [cut(line, columns, self.glyphs.ellipsis) for line in lines[:rows]]

    def _tags(self, board: Board, columns: int, room: int) -> list[Line]:
        shown = [(column, board.counts(column)) for column in board.columns.values()]
        if len(shown) > room:
            shown = sorted(shown, key=_is_over)[: max(1, room - 1)]
        hidden = len(board.columns) - len(shown)
        lines = tag_lines(shown, columns, label_width(board, columns), self.glyphs)
        return [*lines, self._more(formatting.counted(hidden, "more tag"))] if hidden and room > 1 else lines

    def _cells(self, view: View, columns: int, room: int, gap: list[Line]) -> list[Line]:
        """Share the room: failures get what running rows leave, and at least a third."""
        above = len(gap)
        need = [len(kind) + above if kind else 0 for kind in (view.board.running, view.board.failures)]
        second = min(need[1], max(room // 3, room - need[0], min(room // 2, 2 + above)))
        running = self._running(view, columns, min(need[0], room - second) - above)
        failures = self._failures(view.board, columns, second - above)
        return [line for block in (running, failures) if block for line in (*gap, *block)]

    def _running(self, view: View, columns: int, room: int) -> list[Line]:
        board = view.board
        if room < 1 or not board.running:
            return []
        fits = len(board.running) <= room
        rows = self._choose(board.running, room if fits else room - 1)
        lines = [self._row(view, row, columns) for row in rows]
        hidden = len(board.running) - len(rows)
        return lines if fits else [*lines, self._more(f"{formatting.number(hidden)} more running")]

    def _choose(self, running: dict[CellKey, Row], room: int) -> list[Row]:
        """Keep shown rows in their places; who ended makes place for the one that has run longest unseen."""
        kept: list[CellKey | None] = [key if key in running else None for key in self._places[:room]]
        kept += [None] * (room - len(kept))
        taken = {key for key in kept if key is not None}
        fresh = islice((key for key in running if key not in taken), room)
        places = [key if key is not None else next(fresh, None) for key in kept]
        self._places = [key for key in places if key is not None]
        return [running[key] for key in self._places]

    def _row(self, view: View, row: Row, columns: int) -> Line:
        board, glyphs = view.board, self.glyphs
        seconds = (view.now - row.timestamp).total_seconds() if row.timestamp else 0.0
        stalled = bool(row.fraction) and seconds >= _STALLED
        again = f"attempt {row.attempt} {glyphs.dot} " if row.attempt > 1 else ""
        return [
            Span(" " + right(str(row.task_index), index_width(board)) + "  "),
            *self._tag(board, row.tag, columns),
            *self._gauge(row, columns),
            Span(f"  {formatting.age(seconds):>4}  ", "warn" if stalled else "dim"),
            Span(again, "warn"),
            Span(clean(row.message)),
        ]

    def _gauge(self, row: Row, columns: int) -> Line:
        room = 8 if columns < 80 else 12 if columns < 120 else 20
        if not row.fraction:
            word = "started" if row.status == 1 else f"status {row.status}"
            return [Span(left(word, room + 5, self.glyphs.ellipsis), "dim")]
        return [*row_bar(row.fraction, room, self.glyphs), Span(f" {formatting.percent(row.fraction):>4}")]

    def _failures(self, board: Board, columns: int, room: int) -> list[Line]:
        if room < 1:
            return []
        newest = list(islice(reversed(board.failures), room if len(board.failures) <= room else room - 1))
        lines = failure_lines(board, newest, columns, self.glyphs)
        hidden = len(board.failures) - len(newest)
        return [*lines, self._more(f"{formatting.counted(hidden, 'more kind')} of failure")] if hidden else lines

    def _tag(self, board: Board, tag: str, columns: int) -> Line:
        if len(board.columns) < 2:
            return []
        return [Span(left(clean(tag), label_width(board, min(columns, WIDEST)), self.glyphs.ellipsis) + "  ", "dim")]

    def _more(self, what: str) -> Line:
        return [Span(f" {self.glyphs.ellipsis} and {what}", "dim")]


def label_width(board: Board, columns: int) -> int:
    """Give the columns that tags get."""
    return min(max((width(clean(tag)) for tag in board.columns), default=0), 24, max(4, columns // 5))


def index_width(board: Board) -> int:
    """Give the columns that row indexes get."""
    return max(3, len(str(board.job.num_tasks - 1)))


def failure_lines(board: Board, failures: list[Failure], columns: int, glyphs: Glyphs) -> list[Line]:
    """Give one line for each kind of failure: code, tag, rows, message."""
    names = [formatting.status(failure.status, None) for failure in failures]
    rows = [_rows(board.failures[failure], glyphs) for failure in failures]
    name_width, row_width = max(map(len, names), default=0), max(map(width, rows), default=0)
    labels = label_width(board, min(columns, WIDEST)) if len(board.columns) > 1 else 0
    return [
        [
            Span(f" {glyphs.cross} {name:<{name_width}}  ", "bad"),
            Span(left(clean(failure.tag), labels, glyphs.ellipsis) + "  " if labels else "", "dim"),
            Span(left(each, row_width, glyphs.ellipsis) + "  "),
            Span(clean(failure.message)),
        ]
        for failure, name, each in zip(failures, names, rows)
    ]


def _rows(rows: set[int], glyphs: Glyphs) -> str:
    if len(rows) > _MANY:
        return formatting.counted(len(rows), "task")
    return formatting.ranges(IndexSet(rows), _ROWS_WIDTH, glyphs.ellipsis)


def _is_over(shown: tuple[Column, Counts]) -> bool:
    counts = shown[1]
    return counts.finished + counts.failed >= counts.expected
