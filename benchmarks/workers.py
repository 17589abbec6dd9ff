"""Workers of the benchmarks' app, and the CPU time and memory of their processes."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import redis

from tests.servers import RedisServer, wait_for

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def running_worker(
    server: RedisServer, pool: str, concurrency: int, queue: str, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker of the app that consumes one queue and logs to a file, as in production."""
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.app", "worker", "-l", "INFO", "-Q", queue]
    command += ["-P", pool, "-c", str(concurrency), "-n", f"{queue}@benchmarks"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    settings = {**os.environ, "BENCHMARK_REDIS": _base(server), **environment}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home, Path(home, "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=settings, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for(lambda: b" ready." in Path(home, "log").read_bytes(), "the worker")
            yield process
        finally:
            _stop(process)


def _stop(worker: subprocess.Popen[bytes]) -> None:
    """Stop a worker with all its children."""
    worker.terminate()
    try:
        worker.wait(20)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)


def load_app(server: RedisServer) -> ModuleType:
    """Import the app for a server; reload it if it was imported for another one."""
    os.environ["BENCHMARK_REDIS"] = _base(server)
    module = importlib.import_module("benchmarks.app")
    return module if _base(server) == module.URL else importlib.reload(module)


def signal_client(server: RedisServer) -> redis.Redis:
    """Return a client for the signals between a benchmark and its running tasks."""
    return redis.Redis(port=server.port, db=3, socket_timeout=None)


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process with all its threads and children."""
    family = [pid, *_children(pid)]
    files = (path for each in family for path in Path("/proc", str(each), "task").glob("*/schedstat"))
    return sum(int(path.read_text(encoding="ascii").split()[0]) for path in files) / 1e9


def private_bytes(pid: int) -> int:
    """Return the memory in bytes that a process does not share with others."""
    rollup = Path("/proc", str(pid), "smaps_rollup").read_text(encoding="ascii")
    private = (line.split() for line in rollup.splitlines() if line.startswith("Private_"))
    return sum(int(words[1]) * 1024 for words in private)


def _children(pid: int) -> list[int]:
    files = Path("/proc", str(pid), "task").glob("*/children")
    return [int(child) for path in files for child in path.read_text(encoding="ascii").split()]


def _base(server: RedisServer) -> str:
    return f"redis://127.0.0.1:{server.port}"
