"""Jobs with a limited number of rows in flight, on Redis: their duration, and the turn of a job behind a large one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import ModuleType

from benchmarks.harness import Figure, Scale, in_turns, medians
from benchmarks.workers import load_app, running_worker, signal_client
from tests.servers import RedisServer, running_redis

TIMEOUT = 300

WINDOW = 100
"""Rows in flight of the job that is timed."""

NARROW = 50
"""Rows in flight of the job behind which another one waits."""


def measure(scale: Scale) -> Iterator[Figure]:
    """Run jobs with and without a limit in turns, then single tasks behind a large job."""
    num_tasks, rounds = scale(20, 500, 2_000), scale(1, 3, 9)
    with running_redis() as server, running_worker(server, "prefork", 2, "celery"):
        module = load_app(server)
        ways = {window: _way(server, module, num_tasks, window) for window in (None, WINDOW)}
        in_turns(ways, 1)
        seconds = medians(in_turns(ways, rounds))
        what = f"tracked job of {num_tasks:,}, {WINDOW} in flight"
        yield Figure(what, "without a limit", seconds[WINDOW], seconds[None], "s", 1.05)
        passed = _rows_before_a_turn(module, scale(500, 5_000, 100_000), rounds)
        what = f"rows of a large job that end before a single task behind it, {NARROW} in flight"
        yield Figure(what, "two windows", passed, None, "", 2 * NARROW, "alone")


def _way(server: RedisServer, module: ModuleType, num_tasks: int, window: int | None) -> Callable[[], float]:
    client = signal_client(server)

    def run() -> float:
        client.delete("ended")
        start = time.perf_counter()
        members = (module.tracked.s() for _ in range(num_tasks))
        module.states.submit(members, max_in_flight=window, on_success=module.ended.s())
        if client.blpop(["ended"], timeout=TIMEOUT) is None:
            raise TimeoutError(f"{num_tasks} tasks did not end within {TIMEOUT} s")
        return time.perf_counter() - start

    return run


def _rows_before_a_turn(module: ModuleType, num_tasks: int, rounds: int) -> float:
    """Return the most rows of a large job that ended between the submission of a single task and its end."""
    large = module.states.submit((module.tracked.s() for _ in range(num_tasks)), max_in_flight=NARROW)
    passed = []
    for _ in range(rounds):
        before = large.summary(indexes=False).finished
        module.states.submit([module.tracked.s()]).wait(TIMEOUT)
        passed.append(large.summary(indexes=False).finished - before)
    assert large.summary(indexes=False).not_started, "the large job ended before the measurement"
    large.cancel("measured")
    module.states.submit([module.tracked.s()]).wait(
        TIMEOUT
    )  # until the worker has dropped the messages of the large job
    return float(max(passed))
