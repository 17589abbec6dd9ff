"""A whole job of tasks that do nothing: its time against a chord's, and the commands that it costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import redis
from celery import chord

from benchmarks.harness import Figure, Scale, in_turns, medians
from benchmarks.workers import running_worker, the_app
from tests.servers import RedisServer, running_redis

PATIENCE = 120


def measure(scale: Scale) -> Iterator[Figure]:
    """Run each in turns on one worker, prefork -c 2, everything in one Redis."""
    num_tasks = scale(20, 500, 2_000)
    with running_redis() as server, running_worker(server, "prefork", 2, "celery"):
        ways = _ways(server, num_tasks)
        found = medians(in_turns({name: ways[name] for name in ("chord", "tracked")}, scale(1, 3, 9)))
        yield Figure(
            f"tracked job of {num_tasks:,}, on_success", "chord of the same", found["tracked"], found["chord"], "s", 0.8
        )
        counts = {name: commands(server, way) / num_tasks for name, way in ways.items()}
    for name, peer in counts.items():
        if name != "tracked":
            yield Figure(f"commands a tracked task, {name} beside", name, counts["tracked"], peer, "", 13, "alone")


def commands(server: RedisServer, run: Callable[[], object]) -> int:
    """Count what clients send while something runs, by MONITOR; not what scripts do inside."""
    with server.client() as client, client.monitor() as monitor:
        run()
        client.ping()
        lines = 0
        for line in monitor.listen():
            if line["command"] == "PING" and line["client_type"] != "lua":
                return lines
            lines += line["client_type"] != "lua"
    return lines


def _ways(server: RedisServer, num_tasks: int) -> dict[str, Callable[[], float]]:
    module = the_app(server)
    client = redis.Redis(port=server.port, db=3)

    def until_ended(start: Callable[[], object]) -> Callable[[], float]:
        def run() -> float:
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
    }


def _loop(module: object, num_tasks: int) -> None:
    for _ in range(num_tasks):
        module.plain.apply_async()
    module.ended.apply_async()
