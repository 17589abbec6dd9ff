"""What an app that has a StateManager pays for tasks that are in no job: its workers' processor time."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from benchmarks.harness import Figure, Scale, in_turns
from benchmarks.workers import cpu_seconds, running_worker, the_app, the_signals
from tests.servers import RedisServer, running_redis

Times = dict[str, float]
"""Seconds of a processor a task, of each worker, in one round."""


def measure(scale: Scale) -> Iterator[Figure]:
    """Give the same tasks to a worker with and to one without, in turns, and again to new ones.

    Two workers that differ in nothing differ by some hundredths, for their life: by where they lie in memory.
    """
    num_tasks = scale(20, 300, 500)
    found: list[Times] = []
    with running_redis() as server:
        for number in range(scale(1, 3, 8)):
            found += _pair(server, str(number), num_tasks, scale(1, 4, 7))
    peer = statistics.median(each["peer"] for each in found)
    ours = peer * statistics.median(each["ours"] / each["peer"] for each in found)
    yield Figure("untracked task", "without StateManager", ours * 1e6, peer * 1e6, "µs", 1.02)


def _pair(server: RedisServer, number: str, num_tasks: int, rounds: int) -> list[Times]:
    """Start two workers; give what each round of tasks took of each, the first, for which they warm up, left out."""
    with ExitStack() as stack:
        measures = {}
        for name, answer in (("ours", "yes"), ("peer", "no")):
            queue = name + number
            worker = stack.enter_context(running_worker(server, "prefork", 1, queue, BENCHMARK_TRACKED=answer))
            measures[name] = _running(server, worker.pid, queue, num_tasks)
        turns = in_turns(measures, 1 + rounds)
    return [dict(zip(turns, times)) for times in zip(*turns.values())][1:]


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
