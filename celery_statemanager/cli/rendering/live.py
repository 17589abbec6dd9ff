"""Draw the live display of a job on a terminal; needs rich."""

from __future__ import annotations

import logging
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import NoReturn

from rich.console import Console, Group
from rich.control import Control
from rich.live import Live
from rich.text import Text

from celery_statemanager.cli.follow import Follower
from celery_statemanager.cli.model import JobModel
from celery_statemanager.cli.rendering.frame import Frame
from celery_statemanager.cli.rendering.header import View
from celery_statemanager.cli.rendering.text import Line, encodable, glyphs_for
from celery_statemanager.models import StateEvent
from celery_statemanager.records import to_datetime

FRAME = 1 / 8
"""Minimum seconds between two frames."""

IDLE = 0.25
"""Seconds without a change after which the terminal's size and the clock are checked."""

WINDOW = 60.0
"""Seconds over which the rate is measured."""

_SPACING = 1.0
_SHORTEST = 3.0

_STYLES = {"good": "green", "busy": "cyan", "bad": "red", "warn": "yellow", "dim": "dim", "head": "bold", "": ""}


class LiveDisplay:
    """Read in one thread and draw in another, so that the display continues while the store is slow.

    Only the drawing thread uses the model. A full queue makes the reader wait; it then reads the newest version of
    each cell.
    """

    def __init__(self, follower: Follower, console: Console) -> None:
        self.follower = follower
        self.model = JobModel(follower.job, follower.scope)
        self._console = console
        self._glyphs = glyphs_for(console.encoding, colour=console.color_system is not None and not console.no_color)
        self._frame = Frame(self._glyphs)
        self._rate = Rate(to_datetime(follower.job.created_at).timestamp())
        self._queue: queue.Queue[StateEvent | Exception | None] = queue.Queue(maxsize=2_000)
        self._stopped = threading.Event()
        self._over = False
        self._drawn_at = 0.0
        self._drawn: object = None

    def run(self) -> None:
        """Draw until the follower ends. Raises: what the reader raised; KeyboardInterrupt."""
        self.model.column_summaries(self.follower.column_summaries())
        reader = threading.Thread(target=self._read, name="monitor-reader", daemon=True)
        try:
            with undisturbed(), screen(self._console) as live:
                reader.start()
                while not self._over:
                    self._gather()
                    self._draw(live)
        finally:
            self._stopped.set()
            self.follower.close()
            reader.join(timeout=1.0)

    def view(self) -> View:
        """Return what is known now; without rate and ETA while the job makes no progress."""
        follower = self.follower
        self.model.job = follower.job
        view = View(self.model, follower.now, follower.connected, liveness=follower.liveness)
        if self.model.loading or self.model.job.cancelled:
            return view
        total = self.model.total()
        self._rate.add(follower.now.timestamp(), total.passed)
        eta = self._rate.eta(total.expected - total.passed)
        if eta is None or view.standstill is not None:
            return view
        return replace(view, rate=self._rate.per_second, eta=eta)

    def render(self, view: View, columns: int, rows: int) -> Group:
        """Return a view laid out for a terminal of this size."""
        return Group(*(as_text(line, self._console) for line in self._frame.draw(view, columns, rows)))

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
        """Read events until the next frame is due."""
        due = time.monotonic() + IDLE
        while (left := due - time.monotonic()) > 0:
            try:
                item = self._queue.get(timeout=left)
            except queue.Empty:
                return
            if self._take(item):
                due = max(time.monotonic(), self._drawn_at + FRAME)

    def _take(self, item: StateEvent | Exception | None) -> bool:
        """Apply one item; return whether the display may have changed."""
        if isinstance(item, StopIteration):
            self._over = True
        elif isinstance(item, Exception):
            raise item
        elif item is None:
            self.model.loading = False
            return False
        else:
            self.model.loading = self.model.loading and item.replay
            self.model.apply(item.state)
        return True

    def _draw(self, live: Live) -> None:
        view, size = self.view(), self._console.size
        content = (self.model.changes, self.model.loading, self.model.job.revision, view.connected, view.liveness)
        frame = (*content, int(view.elapsed), int(view.now.timestamp()), size)
        if frame == self._drawn or self._over:
            return
        live.update(self.render(view, *size), refresh=True)
        self._drawn, self._drawn_at = frame, time.monotonic()


def as_text(line: Line, console: Console) -> Text:
    """Return a line in the encoding and with the styles of a terminal."""
    text = Text(no_wrap=True, overflow="crop", end="\n")
    for span in line:
        text.append(encodable(span.text, console.encoding), _STYLES[span.style])
    return text


def terminal(*, no_color: bool) -> Console | None:
    """Return the terminal to draw on; None if standard output is not a terminal or cannot move its cursor."""
    console = Console(no_color=no_color or None, highlight=False, markup=False, emoji=False)
    return console if console.is_terminal and not console.is_dumb_terminal else None


@contextmanager
def screen(console: Console) -> Iterator[Live]:
    """Use the whole terminal and restore it at the end. It is cleared, because a resized tmux keeps old content."""
    with Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            yield live
        finally:
            console.control(Control.home(), Control.clear())


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep log lines out of the display, and restore the terminal on SIGTERM."""
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


class Rate:
    """Measure the rate over the last minute or, until a minute was watched, over the whole run.

    Args:
        began_at: time at which nothing was done yet, in seconds on the clock of ``add``.
    """

    def __init__(self, began_at: float) -> None:
        self._samples: deque[tuple[float, float]] = deque([(began_at, 0.0)])
        self._last = (began_at, 0.0)

    def add(self, at: float, done: float) -> None:
        """Record how many cells are done."""
        self._last = (at, done)
        if at - self._samples[-1][0] >= _SPACING or len(self._samples) == 1:
            self._samples.append((at, done))
        while len(self._samples) > 2 and at - self._samples[1][0] >= WINDOW:
            self._samples.popleft()

    @property
    def per_second(self) -> float | None:
        """Cells per second; None while unknown."""
        (start, before), (end, after) = self._samples[0], self._last
        if end - start < _SHORTEST or after <= before:
            return None
        return (after - before) / (end - start)

    def eta(self, left: float) -> float | None:
        """Return the seconds until the remaining cells are done; None while unknown."""
        speed = self.per_second
        return None if speed is None or left <= 0 else left / speed
