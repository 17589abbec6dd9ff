"""Count words with a chord."""

import os
import time
from collections.abc import Iterable
from pathlib import Path

from celery import Celery, chord
from celery.result import AsyncResult

from examples import broker

HOME = Path(os.environ.get("CHORD_DIR", ".chord")).resolve() / "before"
(HOME / "results").mkdir(parents=True, exist_ok=True)

app = Celery("before", backend=f"file://{HOME}/results")
app.conf.update(broker.settings(HOME))
app.conf.update(worker_prefetch_multiplier=1)


@app.task
def count(text: str, seconds: float) -> int:
    """Return the number of words of a text, after some seconds of work."""
    time.sleep(seconds)
    return len(text.split())


@app.task
def add_up(counts: list[int]) -> int:
    """Return the number of words of all texts."""
    return sum(counts)


def start(texts: Iterable[str], seconds: float) -> AsyncResult:
    """Start the chord."""
    return chord([count.s(text, seconds) for text in texts])(add_up.s())
