"""Server memory or file size per state without payload."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.filling import create_filled_job
from benchmarks.harness import Figure, Scale
from celery_statemanager import open_store
from tests.servers import running_redis


def measure(scale: Scale) -> Iterator[Figure]:
    """Measure the size of a whole job minus that of an empty store."""
    num_tasks = scale(1_000, 10_000, 100_000)
    yield Figure("Redis memory per state", "-", in_redis(num_tasks), None, "B", 400, "alone")
    yield Figure("SQLite file per state", "-", in_sqlite(num_tasks), None, "B", 300, "alone")


def in_redis(num_tasks: int) -> float:
    """Return the bytes per state of all keys in the server."""
    with running_redis() as server, server.client() as client, open_store(server.url) as store:
        create_filled_job(store, num_tasks)
        return sum(client.memory_usage(key, samples=0) for key in client.scan_iter()) / num_tasks


def in_sqlite(num_tasks: int) -> float:
    """Return the bytes per state of the file, after its log was moved into it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "states.db")
        with open_store(f"sqlite:///{path}") as store:
            list(store.list_workers())  # creates the file
            empty = path.stat().st_size
            create_filled_job(store, num_tasks)
        return (path.stat().st_size - empty) / num_tasks
