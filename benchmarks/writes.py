"""One ``set_state`` compared with the cheapest operation that stores as many bytes."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from benchmarks.harness import Figure, Scale, alternate
from celery_statemanager import Manager, Store, open_store
from celery_statemanager.stores.sqlite.connection import CHECKPOINT_PAGES, PAGE_BYTES
from tests.servers import running_redis

MESSAGE = "page 4 of 10"


def measure(scale: Scale) -> Iterator[Figure]:
    """Yield the figures of the stores that need no emulator."""
    yield in_memory(scale)
    yield in_sqlite(scale)
    yield in_redis(scale)


def in_memory(scale: Scale) -> Figure:
    """Measure writes per second."""
    with open_store("memory://") as store:
        median = alternate({"ours": state_writer(store)}, scale(3, 500, 2_000), batch=50)["ours"]
    return Figure("memory set_state", "-", 1 / median, None, "/s", 100_000, "alone", at_least=True)


def in_sqlite(scale: Scale) -> Figure:
    """Compare with an upsert of a row of the same content in its own transaction."""
    with tempfile.TemporaryDirectory() as folder, open_store(f"sqlite:///{folder}/states.db") as store:
        upsert = _upserter(Path(folder, "bare.db"))
        medians = alternate({"peer": upsert, "ours": state_writer(store)}, scale(10, 2_000, 10_000))
    return Figure("SQLite set_state", "upsert of one row, WAL", medians["ours"] * 1e6, medians["peer"] * 1e6, "µs", 1.5)


def in_redis(scale: Scale) -> Figure:
    """Compare with a SET of as many bytes as the cell takes."""
    with running_redis() as server, server.client() as client, open_store(server.url) as store:
        value = b"x" * 80
        calls = {"peer": lambda: client.set("bare", value), "ours": state_writer(store)}
        medians = alternate(calls, scale(10, 5_000, 20_000))
    return Figure("Redis set_state", "SET of 80 bytes", medians["ours"] * 1e6, medians["peer"] * 1e6, "µs", 1.3)


def state_writer(store: Store, job_id: str = "writes") -> Callable[[], object]:
    """Return a function that writes a new status to the same cell."""
    manager = Manager.create(store, job_id, num_tasks=8, task_index=0, tags=("work",))
    numbers = count()
    return lambda: manager.set_state("work", 2 + next(numbers) % 90, MESSAGE)


def _upserter(path: Path) -> Callable[[], object]:
    connection = sqlite3.connect(path, isolation_level=None)
    pages = (f"page_size = {PAGE_BYTES}", f"wal_autocheckpoint = {CHECKPOINT_PAGES}")
    for pragma in (*pages, "journal_mode = WAL", "synchronous = NORMAL"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute(
        "CREATE TABLE cell (job, tag, row INTEGER, status INTEGER, message TEXT, timestamp INTEGER, version INTEGER, "
        "event_id TEXT, PRIMARY KEY (job, tag, row)) WITHOUT ROWID"
    )
    numbers = count()

    def upsert() -> None:
        number = next(numbers)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            "INSERT INTO cell VALUES (1, 1, 0, ?, ?, ?, 1, ?) ON CONFLICT DO UPDATE SET status = excluded.status, "
            "message = excluded.message, timestamp = excluded.timestamp, event_id = excluded.event_id, "
            "version = version + 1",
            (2 + number % 90, MESSAGE, 1_700_000_000_000_000 + number, f"{number:032x}"),
        )
        connection.execute("COMMIT")

    return upsert
