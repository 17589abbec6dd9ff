"""The live display of all jobs on a terminal; requires rich."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from rich.console import Console, Group

from celery_statemanager.cli.model import Counts
from celery_statemanager.cli.rendering.bars import tag_bar
from celery_statemanager.cli.rendering.jobs import PHASE_STYLES, job_table
from celery_statemanager.cli.rendering.live import as_text, screen, undisturbed
from celery_statemanager.cli.rendering.text import Glyphs, Line, Span, cut, glyphs_for, width_of
from celery_statemanager.errors import StoreUnavailable
from celery_statemanager.overview import Overview, Phase, Wanted, list_overviews
from celery_statemanager.records import to_datetime
from celery_statemanager.stores import Store

INTERVAL = 2.0
"""Seconds between two reads of the store. Each read includes the counts of the jobs that are shown."""

_MARGIN = 4
"""Lines of the screen that show no job."""

_LONGEST_BAR = 40
_SHORTEST_BAR = 6


class Board:
    """The newest jobs of a store, those that have not settled first.

    Args:
        interval: seconds between two reads; tests shorten it.
    """

    def __init__(self, store: Store, console: Console, *, interval: float = INTERVAL) -> None:
        self._store = store
        self._console = console
        self._interval = interval
        self._glyphs = glyphs_for(console.encoding, colour=console.color_system is not None and not console.no_color)
        self._listed: list[Overview] = []
        self._more = False
        self._connected = True

    def run(self) -> None:
        """Draw until Ctrl-C. Raises: KeyboardInterrupt, StoreError."""
        pause = threading.Event()
        with undisturbed(), screen(self._console) as live:
            while True:
                self._read()
                columns, rows = self._console.size
                lines = board_lines(
                    self._listed,
                    to_datetime(self._now),
                    columns,
                    rows,
                    self._glyphs,
                    more=self._more,
                    connected=self._connected,
                )
                live.update(Group(*(as_text(line, self._console) for line in lines)), refresh=True)
                pause.wait(self._interval)

    def _read(self) -> None:
        """Read the jobs. If the store is unavailable, keep the last ones. Raises: StoreError."""
        try:
            limit = max(1, self._console.size.height - _MARGIN)
            self._listed, self._more = list_overviews(self._store, Wanted(), limit)
            self._now = self._store.now()
        except StoreUnavailable:
            self._connected = False
            if not self._listed:
                raise
        else:
            self._connected = True


def board_lines(
    listed: Sequence[Overview], now: datetime, columns: int, rows: int, glyphs: Glyphs, *, more: bool, connected: bool
) -> list[Line]:
    """Return a title, a line with a bar for each job, and a line with hints. This function has no side effects."""
    ordered = sorted(listed, key=lambda each: each.job.settled)[: max(1, rows - _MARGIN)]
    phases = Counter(each.phase for each in listed)
    title: Line = [Span("jobs", "head")]
    for phase in Phase:
        if phases[phase]:
            title += [Span(f" {glyphs.dot} ", "dim"), Span(f"{phases[phase]} {phase.value}", PHASE_STYLES[phase])]
    if not connected:
        title += [Span(f" {glyphs.dot} ", "dim"), Span("no connection, trying again", "warn")]
    if not ordered:
        return [title, [], [Span("no jobs yet", "dim")], [], _hint("")]
    head, *table = job_table(ordered, now, columns, glyphs)
    wide = max(map(width_of, [head, *table]))
    room = min(columns - wide - 2, _LONGEST_BAR)
    drawn = [head]
    for each, line in zip(ordered, table):
        bar = tag_bar(Counts.from_summary(each.summary), room, glyphs) if room >= _SHORTEST_BAR else []
        drawn.append([*line, Span(" " * (wide - width_of(line) + 2)), *bar] if bar else line)
    hint = _hint(f"these are the newest {len(listed)}; list-state lists more. " if more else "")
    return [cut(line, columns, glyphs.ellipsis) for line in [title, [], *drawn, hint]]


def _hint(before: str) -> Line:
    return [Span(f"{before}Ctrl-C stops watching; monitor-state JOB shows one job", "dim")]
