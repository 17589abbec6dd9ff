"""Draw the README's picture of a running job as an SVG: ``make picture``.

A job in a memory store, on a clock that this script sets, goes through the display of ``monitor-state``. The same
release of rich therefore always draws the same file.
"""

import argparse
import heapq
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from celery_statemanager import Manager, Status
from celery_statemanager.cli.follow import Follower, Until
from celery_statemanager.cli.rendering.live import LiveDisplay
from celery_statemanager.models import Scope
from celery_statemanager.stores.memory import MemoryStore

TARGET = Path(__file__).parents[1] / "docs" / "images" / "live.svg"
COLUMNS, ROWS = 92, 20

JOB, PHOTOS = "catalogue-2026-11", 40
STEPS = {"resize": 10, "upload": 4}
PROCESSES = {"resize": 5, "upload": 2}
BROKEN, RETRIED = ("upload", 7), ("resize", 26)
FAILURE = "ConnectionError: storage.example.com refused the connection"
BEGAN, SHOWN_AFTER = 1_793_523_600.0, 29.7


class Step(NamedTuple):
    """One write of a task: it has done so many of its steps, 0 when an attempt begins."""

    seconds: float
    photo: int
    tag: str
    done: int


class Clock:
    """Seconds since the epoch, as set."""

    def __init__(self) -> None:
        self.now = BEGAN

    def __call__(self) -> float:
        return self.now


def steps() -> Iterator[Step]:
    """Yield the writes of all tasks: each tag has its own processes, and ``upload`` follows ``resize``."""
    ready = [(0.0, photo) for photo in range(PHOTOS)]
    for tag, count in STEPS.items():
        free, ended = [0.3 * process for process in range(PROCESSES[tag])], []
        while ready:
            sent, photo = heapq.heappop(ready)
            begin = max(sent, heapq.heappop(free))
            pace = 0.31 + 0.07 * (photo * 5 % 7)
            if (tag, photo) == RETRIED:
                yield Step(begin, photo, tag, 0)
                begin += pace
            yield from (Step(begin + done * pace, photo, tag, done) for done in range(count + 1))
            heapq.heappush(free, begin + count * pace)
            heapq.heappush(ended, (begin + count * pace, photo))
        ready = ended


def write(manager: Manager, step: Step) -> None:
    """Write one step as a task of the README's example does."""
    cell, total = (step.tag, step.photo), STEPS[step.tag]
    if not step.done:
        manager.begin(step.tag)
    elif step.done < total:
        manager.progress(step.tag, step.done, total, f"photo-{step.photo}.jpg")
    elif cell == BROKEN:
        manager.set_state(step.tag, Status.FAILED, FAILURE)
    else:
        manager.set_state(step.tag, Status.FINISHED)


def draw() -> str:
    """Return the SVG of the job as it is ``SHOWN_AFTER`` seconds after its start."""
    clock = Clock()
    store = MemoryStore(clock)
    job = Manager.create(store, JOB, num_tasks=PHOTOS, tags=tuple(STEPS))
    rows = [Manager.open(store, JOB, task_index=photo) for photo in range(PHOTOS)]
    for step in sorted(steps()):
        if step.seconds <= SHOWN_AFTER:
            clock.now = BEGAN + step.seconds
            write(rows[step.photo], step)
    clock.now = BEGAN + SHOWN_AFTER
    console = Console(record=True, file=io.StringIO(), width=COLUMNS, color_system="truecolor", force_terminal=True)
    follower = Follower(store, store.get_job(job.ref.key), Scope(), Until.NOW, clock=clock)
    display = LiveDisplay(follower, console)
    for event in follower.events():
        if event is not None:
            display.model.apply(event.state)
    display.model.loading = False
    console.print(display.render(display.view(), COLUMNS, ROWS))
    return console.export_svg(title=f"celery -A shop monitor-state {JOB}", unique_id="live")


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", nargs="?", type=Path, default=TARGET, help="the file to write (default: %(default)s)")
    target = parser.parse_args().target
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
