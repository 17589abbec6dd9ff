"""The memory of a worker with a thousand tasks at once, tracked and not."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Iterator

from benchmarks.harness import Figure, Scale, in_turns
from benchmarks.workers import resident_bytes, running_worker, the_app, the_signals
from tests.servers import RedisServer, running_redis

MIB = 2**20


def measure(scale: Scale) -> Iterator[Figure]:
    """Give each kind a worker of its own, in turns."""
    num_tasks = scale(100, 1_000, 1_000)
    with running_redis() as server:
        measures = {kind: _holding(server, kind, num_tasks) for kind in ("plain", "tracked")}
        found = {name: statistics.median(each) for name, each in in_turns(measures, scale(1, 1, 3)).items()}
    tracked, plain = found["tracked"] / MIB, found["plain"] / MIB
    yield Figure(f"worker with {num_tasks:,} tracked tasks", "the same untracked", tracked, plain, "MiB", 10, "above")


def _holding(server: RedisServer, kind: str, num_tasks: int) -> Callable[[], float]:
    module = the_app(server)
    client = the_signals(server)

    def hold() -> float:
        with running_worker(server, "threads", num_tasks, kind, BENCHMARK_PREFETCH="0") as worker:
            if kind == "tracked":
                module.states.submit([module.tracked_hold.s().set(queue=kind) for _ in range(num_tasks)])
            else:
                for _ in range(num_tasks):
                    module.plain_hold.apply_async(queue=kind)
            _until(lambda: int(client.get("holding") or 0) >= num_tasks)
            found = resident_bytes(worker.pid)
            client.rpush("go", "x")
            _until(lambda: not client.exists("go"))
        client.flushdb()
        return found

    return hold


def _until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(2_400):
        if condition():
            return
        pause.wait(0.05)
    raise TimeoutError("the tasks did not all begin within two minutes")
