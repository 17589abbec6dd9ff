"""What it costs to keep the results of tasks, and to read them."""

from __future__ import annotations

import json
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from celery import Celery

from benchmarks.filling import TAG, write_all
from benchmarks.harness import Figure, Scale, in_turns, medians
from celery_statemanager import Job, StateManager, Status
from celery_statemanager.integration.binding import RESULT, Binding
from celery_statemanager.integration.outbox.values import result_to_text
from celery_statemanager.integration.task.run import Run
from celery_statemanager.records import EVERY_ROW, Delivery, Write, new_job
from celery_statemanager.testing import Grid
from tests.servers import running_redis

_AT_ONCE = 1_000
"""Fields that the bare client reads with one command."""


def measure(scale: Scale) -> Iterator[Figure]:
    """Yield the figures of Redis and SQLite."""
    rows, rounds = scale(500, 20_000, 100_000), scale(1, 7, 9)
    yield ending(scale(20, 5_000, 10_000))
    yield from reading_redis(rows, rounds)
    yield reading_sqlite(rows, rounds)


def ending(rounds: int) -> Figure:
    """Compare the end of a task that keeps a result with one that does not."""
    with running_redis() as server, closing(_manager(server.url)) as states:
        ends = {name: _end_of_tasks(states, name, rounds, keeps=name == "ours") for name in ("peer", "ours")}
        results = medians(in_turns(ends, rounds))
    what = "Redis end of a task with its result"
    return Figure(what, "without", results["ours"] * 1e6, results["peer"] * 1e6, "µs", 1.1)


def reading_redis(rows: int, rounds: int) -> Iterator[Figure]:
    """Compare with a client that reads the same texts from one hash, in pages; also if it decodes each of them."""
    with running_redis() as server, server.client() as client, closing(_manager(server.url)) as states:
        for name, value in _VALUES.items():
            texts = [result_to_text(value(row), 1_000)[1:] for row in range(rows)]
            for first in range(0, rows, _AT_ONCE):
                client.hset(name, mapping=dict(enumerate(texts[first : first + _AT_ONCE], first)))
            job = _filled(states, name, rows, value)

            def read(name: str = name) -> list[bytes]:
                pages = (range(first, min(rows, first + _AT_ONCE)) for first in range(0, rows, _AT_ONCE))
                return [text for page in pages for text in client.hmget(name, page)]

            def decode(read: Callable[[], list[bytes]] = read) -> list[Any]:
                return [json.loads(text) for text in read()]

            measures = {"bare": _timed(read, rows), "decoded": _timed(decode, rows), "ours": _timed_results(job, rows)}
            found = {name: each * 1e3 for name, each in medians(in_turns(measures, rounds)).items()}
            what = f"Redis results() of {rows:,} {name}"
            if name == "numbers":
                yield Figure(what, "HMGET of the same texts", found["ours"], found["bare"], "ms", 1.5)
            yield Figure(what, "HMGET, json.loads of each", found["ours"], found["decoded"], "ms", 1.5)


def reading_sqlite(rows: int, rounds: int) -> Figure:
    """Compare with a SELECT of the same rows that decodes them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "states.db")
        with closing(_manager(f"sqlite:///{path}")) as states, closing(sqlite3.connect(path)) as connection:
            job = _filled(states, "objects", rows, _VALUES["objects"])
            select = "SELECT task_index, value FROM value ORDER BY task_index"

            def read() -> list[Any]:
                return [json.loads(text[1:]) for _, text in connection.execute(select)]

            measures = {"peer": _timed(read, rows), "ours": _timed_results(job, rows)}
            results = medians(in_turns(measures, rounds))
    what = f"SQLite results() of {rows:,} objects"
    return Figure(what, "SELECT, json.loads of each", results["ours"] * 1e3, results["peer"] * 1e3, "ms", 1.5)


_VALUES: dict[str, Callable[[int], Any]] = {
    "numbers": lambda row: row,
    "objects": lambda row: {"page": row, "words": ["alpha", "beta"], "share": row / 7},
}


class _States(StateManager):
    """A manager that closes its store."""

    def close(self) -> None:
        self.store.close()
        self.app.close()


def _manager(url: str) -> _States:
    return _States(Celery("results", broker="memory://", set_as_current=False, statemanager_store_url=url))


def _filled(states: StateManager, name: str, rows: int, value: Callable[[int], Any]) -> Job:
    record = states.store.create_job(replace(new_job(name, rows, (TAG,)), results=EVERY_ROW))
    write_all(states.store, record.ref, (_write(row, result_to_text(value(row), 1_000)) for row in range(rows)))
    return states.job(name)


def _write(row: int, value: str) -> Write:
    return Write(TAG, row, int(Status.FINISHED), value=value)


def _end_of_tasks(states: StateManager, name: str, tasks: int, *, keeps: bool) -> Callable[[], float]:
    """Return a function that runs the next row and returns the seconds that its end has taken."""
    grid = Grid.submitted(states.store, tasks, (TAG,), name)
    rows = count()

    def end() -> float:
        binding = Binding(grid.ref, next(rows), TAG, next=RESULT if keeps else None)
        run = Run(states, binding, Delivery(), "worker", None, None)
        run.begin()
        start = time.perf_counter()
        run.finish({"page": binding.task_index, "words": ["alpha", "beta"]})
        seconds = time.perf_counter() - start
        assert run.ended
        return seconds

    return end


def _timed_results(job: Job, rows: int) -> Callable[[], float]:
    return _timed(lambda: [value for _, value in job.results()], rows)


def _timed(read: Callable[[], list[Any]], expected: int) -> Callable[[], float]:
    def timed() -> float:
        start = time.perf_counter()
        found = len(read())
        seconds = time.perf_counter() - start
        assert found == expected, (found, expected)
        return seconds

    return timed
