"""The live picture on a terminal: the only module that needs rich."""

from __future__ import annotations

import logging
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from rich.console import Console, Group
from rich.control import Control
from rich.live import Live
from rich.text import Text

from celery_statemanager.cli.follow import Follower
from celery_statemanager.cli.model import Board
from celery_statemanager.cli.rendering.frame import Frame
from celery_statemanager.cli.rendering.header import View
from celery_statemanager.cli.rendering.text import Line, glyphs_for, sayable
from celery_statemanager.models import StateEvent
from celery_statemanager.records import to_datetime

FRAME = 1 / 8
"""Seconds between two pictures at the least."""

IDLE = 0.25
"""Seconds after which the terminal's size and the clock are looked at when nothing comes."""

_STYLES = {"good": "green", "busy": "cyan", "bad": "red", "warn": "yellow", "dim": "dim", "head": "bold", "": ""}


class LivePicture:
    """Reads in one thread, draws in another: the picture goes on while the store is slow to answer.

    The board belongs to the drawing thread alone. A full queue makes the reader wait, and what it then
    reads is the newest version of each cell.
    """

    def __init__(self, follower: Follower, console: Console) -> None:
        self.follower = follower
        self.board = Board(follower.job, follower.scope)
        self._console = console
        self._glyphs = glyphs_for(console.encoding, colour=console.color_system is not None and not console.no_color)
        self._frame = Frame(self._glyphs)
        self._pace = Pace(to_datetime(follower.job.created_at).timestamp())
        self._queue: queue.Queue[StateEvent | Exception | None] = queue.Queue(maxsize=2_000)
        self._stopped = threading.Event()
        self._over = False
        self._drawn_at = 0.0
        self._drawn: object = None

    def run(self) -> None:
        """Draw until there is no more to come. Raises: what the reader raised; KeyboardInterrupt."""
        self.board.column_summaries(self.follower.column_summaries())
        reader = threading.Thread(target=self._read, name="monitor-reader", daemon=True)
        try:
            with _undisturbed(), _screen(self._console) as live:
                reader.start()
                while not self._over:
                    self._gather()
                    self._draw(live)
        finally:
            self._stopped.set()
            self.follower.close()
            reader.join(timeout=1.0)

    def view(self) -> View:
        """Give what is known now."""
        self.board.job = self.follower.job
        if self.board.loading or self.board.job.cancelled:
            return View(self.board, self.follower.now, self.follower.connected)
        total = self.board.total()
        self._pace.note(self.follower.now.timestamp(), total.passed)
        eta = self._pace.eta(total.expected - total.passed)
        rate = None if eta is None else self._pace.rate
        return View(self.board, self.follower.now, self.follower.connected, rate, eta)

    def render(self, view: View, columns: int, rows: int) -> Group:
        """Return a view laid out for a terminal of this size."""
        return Group(*(self._text(line) for line in self._frame.draw(view, columns, rows)))

    def _read(self) -> None:
        try:
            for event in self.follower.events():
                self._hand_over(event)
        except Exception as error:  # noqa: BLE001 - raised again by the drawing thread
            self._hand_over(error)
        else:
            self._hand_over(StopIteration())

    def _hand_over(self, item: StateEvent | Exception | None) -> None:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=IDLE)
            except queue.Full:
                continue
            return

    def _gather(self) -> None:
        """Take what comes until the next picture is due."""
        due = time.monotonic() + IDLE
        while (left := due - time.monotonic()) > 0:
            try:
                item = self._queue.get(timeout=left)
            except queue.Empty:
                return
            if self._take(item):
                due = max(time.monotonic(), self._drawn_at + FRAME)

    def _take(self, item: StateEvent | Exception | None) -> bool:
        """Take one thing in; tell whether the picture may have changed."""
        if isinstance(item, StopIteration):
            self._over = True
        elif isinstance(item, Exception):
            raise item
        elif item is None:
            self.board.loading = False
            return False
        else:
            self.board.loading = self.board.loading and item.replay
            self.board.apply(item.state)
        return True

    def _draw(self, live: Live) -> None:
        view, size = self.view(), self._console.size
        seen = (self.board.changes, self.board.loading, self.board.job.revision, view.connected)
        picture = (*seen, int(view.elapsed), int(view.now.timestamp()), size)
        if picture == self._drawn or self._over:
            return
        live.update(self.render(view, *size), refresh=True)
        self._drawn, self._drawn_at = picture, time.monotonic()

    def _text(self, line: Line) -> Text:
        text = Text(no_wrap=True, overflow="crop", end="\n")
        for span in line:
            text.append(sayable(span.text, self._console.encoding), _STYLES[span.style])
        return text


def terminal(*, no_color: bool) -> Console | None:
    """Give the terminal to draw on; None where standard output is none, or a dumb one."""
    console = Console(no_color=no_color or None, highlight=False, markup=False, emoji=False)
    return console if console.is_terminal and not console.is_dumb_terminal else None


@contextmanager
def _screen(console: Console) -> Iterator[Live]:
    """Take the whole terminal, and give it back as it was; tmux keeps what is not cleared if it was resized."""
    with Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            yield live
        finally:
            console.control(Control.home(), Control.clear())


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep log lines out of the picture, and leave the terminal as it was when told to terminate."""
    logger = logging.getLogger("celery_statemanager")
    propagates, logger.propagate = logger.propagate, False
    silence = logging.NullHandler()
    logger.addHandler(silence)
    terminate = signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, terminate)
        logger.removeHandler(silence)
        logger.propagate = propagates


def _terminated(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


WINDOW = 60.0
"""Seconds over which the speed is taken."""

_SPACING = 1.0
_SHORTEST = 3.0


class Pace:
    """Work done over time; the speed of the last minute, before that of the whole run.

    Args:
        began_at: seconds on the clock of ``note``, when nothing was done yet.
    """

    def __init__(self, began_at: float) -> None:
        self._samples: deque[tuple[float, float]] = deque([(began_at, 0.0)])
        self._last = (began_at, 0.0)

    def note(self, at: float, done: float) -> None:
        """Take down how much is done, in cells."""
        self._last = (at, done)
        if at - self._samples[-1][0] >= _SPACING or len(self._samples) == 1:
            self._samples.append((at, done))
        while len(self._samples) > 2 and at - self._samples[1][0] >= WINDOW:
            self._samples.popleft()

    @property
    def rate(self) -> float | None:
        """Cells per second; None while it cannot be told."""
        (start, before), (end, after) = self._samples[0], self._last
        if end - start < _SHORTEST or after <= before:
            return None
        return (after - before) / (end - start)

    def eta(self, left: float) -> float | None:
        """Give the seconds that the rest will take; None while that cannot be told."""
        speed = self.rate
        return None if speed is None or left <= 0 else left / speed
