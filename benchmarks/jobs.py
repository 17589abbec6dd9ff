"""A job of empty tasks: its duration and processor time compared with a chord's, and its number of Redis commands."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from time import process_time
from types import ModuleType

from celery import chord, group

from benchmarks.harness import Figure, Scale, in_turns, medians
from benchmarks.workers import cpu_seconds, load_app, running_worker, signal_client
from tests.servers import RedisServer, running_redis

TIMEOUT = 120

_END = "end of the run"
"""The text that ends the count. Other clients send PING too."""

Way = Callable[[], float]
"""Run all tasks and return the duration in seconds."""


def measure(scale: Scale) -> Iterator[Figure]:
    """Run each way in turns, on one worker with two processes and one Redis."""
    num_tasks, with_progress, rounds = scale(20, 500, 2_000), scale(20, 200, 600), scale(1, 3, 9)
    with running_redis() as server, running_worker(server, "prefork", 2, "celery") as worker:
        assert server.process is not None
        pids = worker.pid, server.process.pid
        ways = ways_to_run(server, num_tasks)
        compared = {name: ways[name] for name in ("chord", "tracked")}
        yield from _compare(f"tracked job of {num_tasks:,}, on_success", compared, pids, num_tasks, rounds, 0.8)
        compared = progress_ways(server, with_progress)
        what = f"tracked job of {with_progress:,}, 3 progress writes each"
        yield from _compare(what, compared, pids, with_progress, rounds, 0.7)
        counts = {name: count_commands(server, way) for name, way in ways.items()}
    yield from _command_figures(counts, num_tasks)


def _compare(
    what: str, ways: dict[str, Way], pids: tuple[int, ...], num_tasks: int, rounds: int, limit: float
) -> Iterator[Figure]:
    """Compare the duration and the processor time of this process, of the worker and of the server."""

    def measured(way: Way) -> Callable[[], tuple[float, float]]:
        def run() -> tuple[float, float]:
            before = process_time() + sum(map(cpu_seconds, pids))
            seconds = way()
            return seconds, process_time() + sum(map(cpu_seconds, pids)) - before

        return run

    measures = {name: measured(way) for name, way in ways.items()}
    in_turns(measures, 1)
    found = in_turns(measures, rounds)
    seconds, used = (medians({name: [run[n] for run in runs] for name, runs in found.items()}) for n in (0, 1))
    yield Figure(what, "chord of the same", seconds["tracked"], seconds["chord"], "s", limit)
    ours, peer = (used[name] / num_tasks * 1e3 for name in ("tracked", "chord"))
    yield Figure(f"{what}: processor time a task", "chord of the same", ours, peer, "ms", 0.7)


def _command_figures(counts: dict[str, Counter[str]], num_tasks: int) -> Iterator[Figure]:
    sent = {name: count["sent"] / num_tasks for name, count in counts.items()}
    for name, peer in sent.items():
        if name != "tracked":
            yield Figure("commands per tracked task", name, sent["tracked"], peer, "", 13, "alone")


def count_commands(server: RedisServer, way: Way) -> Counter[str]:
    """Count the commands that clients send and that scripts execute during a run, as seen by MONITOR."""
    with server.client(socket_timeout=None) as client, client.monitor() as monitor:
        way()
        client.echo(_END)
        commands: Counter[str] = Counter()
        for line in monitor.listen():
            if line["command"] == f"ECHO {_END}":
                return commands
            commands["inside" if line["client_type"] == "lua" else "sent"] += 1
    return commands


def until_ended(server: RedisServer, num_tasks: int, start: Callable[[], object]) -> Way:
    """Return a function that starts tasks, and waits until the one after them has run."""
    client = signal_client(server)

    def run() -> float:
        client.delete("ended")
        start_time = time.perf_counter()
        start()
        if client.blpop(["ended"], timeout=TIMEOUT) is None:
            raise TimeoutError(f"{num_tasks} tasks did not end within {TIMEOUT} s")
        return time.perf_counter() - start_time

    return run


def ways_to_run(server: RedisServer, num_tasks: int) -> dict[str, Way]:
    """Return the ways to run ``num_tasks`` tasks, by name."""
    module = load_app(server)
    until = partial(until_ended, server, num_tasks)

    return {
        "tracked": until(
            lambda: module.states.submit((module.tracked.s() for _ in range(num_tasks)), on_success=module.ended.s())
        ),
        "chord": until(lambda: chord((module.with_result.s() for _ in range(num_tasks)), module.ended.s())()),
        "loop of apply_async": until(lambda: _send_in_loop(module, num_tasks)),
        "group": until(lambda: _send_group(module, "plain", num_tasks)),
        "group with results": until(lambda: _send_group(module, "with_result", num_tasks)),
    }


def progress_ways(server: RedisServer, num_tasks: int) -> dict[str, Way]:
    """Return the ways to run ``num_tasks`` tasks that write their progress three times."""
    module = load_app(server)
    until = partial(until_ended, server, num_tasks)

    def tracked() -> object:
        members = (module.tracked_progress.s() for _ in range(num_tasks))
        return module.states.submit(members, on_success=module.ended.s())

    return {
        "chord": until(lambda: chord((module.update_state.s() for _ in range(num_tasks)), module.ended.s())()),
        "tracked": until(tracked),
    }


def _send_in_loop(module: ModuleType, num_tasks: int) -> None:
    with module.app.producer_or_acquire() as producer:
        for _ in range(num_tasks):
            module.plain.apply_async(producer=producer)
        module.ended.apply_async(producer=producer)


def _send_group(module: ModuleType, task: str, num_tasks: int) -> None:
    group(getattr(module, task).s() for _ in range(num_tasks)).apply_async()
    module.ended.apply_async()
