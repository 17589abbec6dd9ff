"""The Celery app of ``benchmarks.recovery``, configured by environment variables."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from celery import Celery

from celery_statemanager import StatefulTask, StateManager

HOME = Path(os.environ.get("RECOVERY_HOME", "/nonexistent"))
REDIS = os.environ.get("RECOVERY_REDIS", "redis://127.0.0.1:1")
VISIBILITY = os.environ.get("RECOVERY_VISIBILITY", "")
LEASE, INTERVAL = os.environ.get("RECOVERY_LEASE", "30 15").split()

app = Celery("recovery", broker=f"{REDIS}/0", backend=f"{REDIS}/1")
app.conf.update(
    statemanager_store_url=f"{REDIS}/2",
    statemanager_lease=float(LEASE),
    statemanager_sweep_interval=float(INTERVAL),
    worker_prefetch_multiplier=1,
    broker_transport_options={"visibility_timeout": float(VISIBILITY)} if VISIBILITY else {},
)
states = StateManager(app)


def note(text: str) -> None:
    """Append the time, the pid of the worker and a text to the notes."""
    with (HOME / "notes").open("a") as file:
        file.write(f"{time.time()} {os.getppid()} {text}\n")


def notes(prefix: str) -> list[tuple[float, int, str]]:
    """Return the notes whose text starts with ``prefix``: time, pid of the worker and text."""
    path = HOME / "notes"
    lines = [line.split(maxsplit=2) for line in path.read_text().splitlines()] if path.exists() else []
    return [(float(when), int(pid), text) for when, pid, text in lines if text.startswith(prefix)]


@app.task(acks_late=True)
def plain(row: int) -> None:
    """Run for one second."""
    note(f"begun {row}")
    time.sleep(1)


@app.task(base=StatefulTask, acks_late=True, tag="work")
def tracked(row: int) -> None:
    """Run for one second."""
    note(f"begun {row}")
    time.sleep(1)


@app.task
def after(*_: Any) -> None:
    """Note that the callback of the job runs."""
    note("after")
