"""CPU time of tasks outside any job, in workers of an app with and without a StateManager."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from benchmarks.harness import Figure, Scale, in_turns
from benchmarks.workers import cpu_seconds, load_app, running_worker, signal_client
from tests.servers import RedisServer, running_redis

Times = dict[str, float]
"""CPU seconds per task of each worker in one round."""


def measure(scale: Scale) -> Iterator[Figure]:
    """Run the same tasks on a worker with and on one without a StateManager, in turns, on several pairs of workers.

    One pair is not enough: the memory layout makes even identical workers differ by a few percent.
    """
    num_tasks = scale(20, 300, 500)
    times: list[Times] = []
    with running_redis() as server:
        for number in range(scale(1, 3, 8)):
            times += _run_pair(server, str(number), num_tasks, scale(1, 4, 7))
    peer = statistics.median(each["peer"] for each in times)
    ours = peer * statistics.median(each["ours"] / each["peer"] for each in times)
    yield Figure("untracked task", "without StateManager", ours * 1e6, peer * 1e6, "µs", 1.02)


def _run_pair(server: RedisServer, number: str, num_tasks: int, rounds: int) -> list[Times]:
    """Start two workers and return their times in each round, without the first, which warms them up."""
    with ExitStack() as stack:
        measures = {}
        for name, tracked in (("ours", "yes"), ("peer", "no")):
            queue = name + number
            worker = stack.enter_context(running_worker(server, "prefork", 1, queue, BENCHMARK_TRACKED=tracked))
            measures[name] = _round_of_tasks(server, worker.pid, queue, num_tasks)
        turns = in_turns(measures, 1 + rounds)
    return [dict(zip(turns, times)) for times in zip(*turns.values())][1:]


def _round_of_tasks(server: RedisServer, pid: int, queue: str, num_tasks: int) -> Callable[[], float]:
    module = load_app(server)
    client = signal_client(server)

    def run() -> float:
        start = cpu_seconds(pid)
        with module.app.producer_or_acquire() as producer:
            for _ in range(num_tasks):
                module.plain.apply_async(producer=producer, queue=queue)
            module.ended.apply_async(producer=producer, queue=queue)
        client.blpop(["ended"], timeout=120)
        return (cpu_seconds(pid) - start) / num_tasks

    return run
