"""Count words with a tracked job. Four lines differ from ``before.py``, apart from names and folders."""

import os
import time
from collections.abc import Iterable
from pathlib import Path

from celery import Celery, chord

from celery_statemanager import Job, StatefulTask, StateManager
from examples import broker

HOME = Path(os.environ.get("CHORD_DIR", ".chord")).resolve() / "after"
HOME.mkdir(parents=True, exist_ok=True)

app = Celery("after")
app.conf.update(broker.settings(HOME))
app.conf.update(worker_prefetch_multiplier=1)
app.conf.update(
    statemanager_store_url=f"sqlite:///{HOME}/states.db",
    statemanager_lease=4,  # finds a dead worker within 6 seconds
    statemanager_sweep_interval=2,
)
states = StateManager(app)


@app.task(base=StatefulTask, on_lost="requeue")
def count(text: str, seconds: float) -> int:
    """Return the number of words of a text, after some seconds of work."""
    time.sleep(seconds)
    return len(text.split())


@app.task(base=StatefulTask)
def add_up(counts: list[int]) -> int:
    """Return the number of words of all texts."""
    return sum(counts)


def start(texts: Iterable[str], seconds: float) -> Job:
    """Start the tracked job."""
    return states.submit(chord([count.s(text, seconds) for text in texts], add_up.s()))
