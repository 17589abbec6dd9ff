"""Memory of a worker that runs a thousand tasks at the same time, tracked or not."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Iterator

from benchmarks.harness import Figure, Scale, in_turns
from benchmarks.workers import load_app, private_bytes, running_worker, signal_client
from tests.servers import RedisServer, running_redis

MIB = 2**20


def measure(scale: Scale) -> Iterator[Figure]:
    """Run each kind of task on its own worker, in turns."""
    num_tasks = scale(100, 1_000, 1_000)
    with running_redis() as server:
        measures = {kind: _memory_holding(server, kind, num_tasks) for kind in ("plain", "tracked")}
        medians = {name: statistics.median(each) for name, each in in_turns(measures, scale(1, 1, 3)).items()}
    tracked, plain = medians["tracked"] / MIB, medians["plain"] / MIB
    yield Figure(f"worker with {num_tasks:,} tracked tasks", "the same, untracked", tracked, plain, "MiB", 10, "above")


def _memory_holding(server: RedisServer, kind: str, num_tasks: int) -> Callable[[], float]:
    module = load_app(server)
    client = signal_client(server)

    def hold() -> float:
        with running_worker(server, "threads", num_tasks, kind, BENCHMARK_PREFETCH="0") as worker:
            if kind == "tracked":
                module.states.submit([module.tracked_hold.s().set(queue=kind) for _ in range(num_tasks)])
            else:
                for _ in range(num_tasks):
                    module.plain_hold.apply_async(queue=kind)
            _wait_until(lambda: int(client.get("holding") or 0) >= num_tasks)
            used = private_bytes(worker.pid)
            client.rpush("release", "x")
            _wait_until(lambda: not client.exists("release"))
        client.flushdb()
        return used

    return hold


def _wait_until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(2_400):
        if condition():
            return
        pause.wait(0.05)
    raise TimeoutError("the tasks did not all begin within two minutes")
