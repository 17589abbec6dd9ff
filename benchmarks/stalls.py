"""CPU time of tracked tasks that are watched for stalls, and do not stall."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

from benchmarks.harness import Figure, Scale, in_turns
from benchmarks.workers import cpu_seconds, load_app, running_worker, signal_client
from tests.servers import RedisServer, running_redis

QUEUE = "stalls"


def measure(scale: Scale) -> Iterator[Figure]:
    """Run the same jobs with and without ``stall_after`` on one worker, in turns."""
    num_tasks, rounds = scale(20, 300, 500), scale(1, 10, 20)
    with running_redis() as server, running_worker(server, "prefork", 1, QUEUE) as worker:
        limits = {"ours": 60.0, "peer": None}
        turns = {name: _round(server, worker.pid, num_tasks, limit) for name, limit in limits.items()}
        times = in_turns(turns, 1 + rounds)
    pairs = [*zip(times["ours"], times["peer"])][1:]  # the first round warms the worker up
    peer = statistics.median(each for _, each in pairs)
    ours = peer * statistics.median(ours / each for ours, each in pairs)
    yield Figure("tracked task with stall_after", "without", ours * 1e6, peer * 1e6, "µs", 1.01)


def _round(server: RedisServer, pid: int, num_tasks: int, stall_after: float | None) -> Callable[[], float]:
    module = load_app(server)
    client = signal_client(server)

    def run() -> float:
        start = cpu_seconds(pid)
        members = [module.tracked.s().set(queue=QUEUE) for _ in range(num_tasks)]
        module.states.submit(members, on_success=module.ended.si().set(queue=QUEUE), stall_after=stall_after)
        client.blpop(["ended"], timeout=120)
        return (cpu_seconds(pid) - start) / num_tasks

    return run
