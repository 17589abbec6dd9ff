"""Workers of the benchmarks' app, and what the kernel says of their processes."""

from __future__ import annotations

import contextlib
import importlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from tests.integration.workers import Worker
from tests.servers import RedisServer


@contextlib.contextmanager
def running_worker(
    server: RedisServer, pool: str, concurrency: int, queue: str, **environment: str
) -> Iterator[Worker]:
    """Run a worker of the app that takes one queue."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        settings = {"TRACKED_HOME": home, "BENCHMARK_REDIS": _base(server), **environment}
        worker = Worker(settings, pool, queue, concurrency=concurrency, app="benchmarks.app")
        try:
            yield worker
        finally:
            worker.stop()


def the_app(server: RedisServer) -> ModuleType:
    """Import the app for a server, anew for another one."""
    os.environ["BENCHMARK_REDIS"] = _base(server)
    module = importlib.import_module("benchmarks.app")
    return module if _base(server) == module.URL else importlib.reload(module)


def cpu_seconds(pid: int) -> float:
    """Give the time that a process, all its threads and its children have had a processor."""
    family = [pid, *_children(pid)]
    files = (path for each in family for path in Path("/proc", str(each), "task").glob("*/schedstat"))
    return sum(int(path.read_text(encoding="ascii").split()[0]) for path in files) / 1e9


def resident_bytes(pid: int) -> int:
    """Give the memory that a process has of its own."""
    rollup = Path("/proc", str(pid), "smaps_rollup").read_text(encoding="ascii")
    private = (line.split() for line in rollup.splitlines() if line.startswith("Private_"))
    return sum(int(words[1]) * 1024 for words in private)


def _children(pid: int) -> list[int]:
    found = Path("/proc", str(pid), "task").glob("*/children")
    return [int(child) for path in found for child in path.read_text(encoding="ascii").split()]


def _base(server: RedisServer) -> str:
    return f"redis://127.0.0.1:{server.port}"
