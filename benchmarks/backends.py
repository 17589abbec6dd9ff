"""One ``set_state`` on SQLite compared with a state that Celery's SQLAlchemy result backend stores on SQLite."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from itertools import count

import pytest
from celery import Celery

from benchmarks.harness import Figure, Scale, alternate
from benchmarks.writes import MESSAGE, state_writer
from celery_statemanager import open_store


def measure(scale: Scale) -> Iterator[Figure]:
    """Write to one cell, and store the state of one task, in turns."""
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed: pip install --group bench")
    with tempfile.TemporaryDirectory() as folder, open_store(f"sqlite:///{folder}/states.db") as store:
        calls = {"peer": _backend_writer(f"{folder}/results.db"), "ours": state_writer(store)}
        medians = alternate(calls, scale(10, 500, 3_000))
    ours, peer = medians["ours"] * 1e6, medians["peer"] * 1e6
    yield Figure("SQLite set_state", "SQLAlchemy backend's store_result", ours, peer, "µs", 0.2)


def _backend_writer(path: str) -> Callable[[], object]:
    app = Celery("backends", broker="memory://", backend=f"db+sqlite:///{path}", set_as_current=False)
    numbers = count()
    return lambda: app.backend.store_result("task", {"done": next(numbers), "message": MESSAGE}, "PROGRESS")
