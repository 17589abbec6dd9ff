"""A whole job of tasks that do nothing: its time against a chord's, and the commands that it costs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import ModuleType

from celery import chord, group

from benchmarks.harness import Figure, Scale, in_turns, medians
from benchmarks.workers import running_worker, the_app, the_signals
from tests.servers import RedisServer, running_redis

PATIENCE = 120

Way = Callable[[], float]
"""Does all tasks in one of several ways; gives seconds."""


def measure(scale: Scale) -> Iterator[Figure]:
    """Run each in turns on one worker, prefork -c 2, everything in one Redis."""
    num_tasks = scale(20, 500, 2_000)
    with running_redis() as server, running_worker(server, "prefork", 2, "celery"):
        ways = ways_of(server, num_tasks)
        compared = {name: ways[name] for name in ("chord", "tracked")}
        in_turns(compared, 1)
        found = medians(in_turns(compared, scale(1, 3, 9)))
        yield Figure(
            f"tracked job of {num_tasks:,}, on_success", "chord of the same", found["tracked"], found["chord"], "s", 0.8
        )
        counts = {name: commands(server, way) for name, way in ways.items()}
    yield from _compared(counts, num_tasks)


def _compared(counts: dict[str, Counter[str]], num_tasks: int) -> Iterator[Figure]:
    sent = {name: count["sent"] / num_tasks for name, count in counts.items()}
    for name, peer in sent.items():
        if name != "tracked":
            yield Figure(f"commands a tracked task, {name} beside", name, sent["tracked"], peer, "", 13, "alone")


def commands(server: RedisServer, way: Way) -> Counter[str]:
    """Count by MONITOR what clients have sent, and what scripts did inside, while something ran."""
    with server.client(socket_timeout=None) as client, client.monitor() as monitor:
        way()
        client.ping()
        lines: Counter[str] = Counter()
        for line in monitor.listen():
            if line["command"] == "PING" and line["client_type"] != "lua":
                return lines
            lines["inside" if line["client_type"] == "lua" else "sent"] += 1
    return lines


def ways_of(server: RedisServer, num_tasks: int) -> dict[str, Way]:
    """Give the ways to run so many tasks."""
    module = the_app(server)
    client = the_signals(server)

    def until_ended(start: Callable[[], object]) -> Way:
        def run() -> float:
            client.delete("ended")
            began = time.perf_counter()
            start()
            if client.blpop(["ended"], timeout=PATIENCE) is None:
                raise TimeoutError(f"{num_tasks} tasks did not end within {PATIENCE} s")
            return time.perf_counter() - began

        return run

    return {
        "tracked": until_ended(
            lambda: module.states.submit((module.tracked.s() for _ in range(num_tasks)), on_success=module.ended.s())
        ),
        "chord": until_ended(lambda: chord((module.with_result.s() for _ in range(num_tasks)), module.ended.s())()),
        "loop of apply_async": until_ended(lambda: _loop(module, num_tasks)),
        "group": until_ended(lambda: _group(module, "plain", num_tasks)),
        "group with results": until_ended(lambda: _group(module, "with_result", num_tasks)),
    }


def _loop(module: ModuleType, num_tasks: int) -> None:
    with module.app.producer_or_acquire() as producer:
        for _ in range(num_tasks):
            module.plain.apply_async(producer=producer)
        module.ended.apply_async(producer=producer)


def _group(module: ModuleType, task: str, num_tasks: int) -> None:
    group(getattr(module, task).s() for _ in range(num_tasks)).apply_async()
    module.ended.apply_async()
