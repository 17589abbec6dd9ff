"""What an app that has a StateManager pays for tasks that are in no job: its workers' processor time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

from benchmarks.harness import Figure, Scale, in_turns, medians
from benchmarks.workers import cpu_seconds, running_worker, the_app, the_signals
from tests.servers import RedisServer, running_redis


def measure(scale: Scale) -> Iterator[Figure]:
    """Give the same tasks to a worker with and to one without, in turns."""
    num_tasks = scale(20, 1_000, 2_000)
    with ExitStack() as stack:
        server = stack.enter_context(running_redis())
        measures = {}
        for name, answer in (("ours", "yes"), ("peer", "no")):
            worker = stack.enter_context(running_worker(server, "prefork", 1, name, BENCHMARK_TRACKED=answer))
            measures[name] = _running(server, worker.pid, name, num_tasks)
        in_turns(measures, 1)
        found = medians(in_turns(measures, scale(1, 5, 15)))
    yield Figure("untracked task", "without StateManager", found["ours"] * 1e6, found["peer"] * 1e6, "µs", 1.02)


def _running(server: RedisServer, pid: int, queue: str, num_tasks: int) -> Callable[[], float]:
    module = the_app(server)
    client = the_signals(server)

    def run() -> float:
        start = cpu_seconds(pid)
        with module.app.producer_or_acquire() as producer:
            for _ in range(num_tasks):
                module.plain.apply_async(producer=producer, queue=queue)
            module.ended.apply_async(producer=producer, queue=queue)
        client.blpop(["ended"], timeout=120)
        return (cpu_seconds(pid) - start) / num_tasks

    return run
