"""Rate and memory of publishing many tasks, each time in a new process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

from benchmarks.harness import Figure, Scale, in_turns, medians
from tests.servers import RedisServer, running_redis

_PROGRAM = """
import sys, time
from benchmarks.app import app, states, plain, tracked
from benchmarks.harness import peak_memory
way, number = sys.argv[1], int(sys.argv[2])
members = (tracked.s() for _ in range(number))
app.connection_for_write().ensure_connection()
states.store.now()
start = time.perf_counter()
if way == "submit":
    states.submit(members)
else:
    with app.producer_or_acquire() as producer:
        for _ in range(number):
            plain.apply_async(producer=producer)
seconds = time.perf_counter() - start
print(number / seconds, peak_memory())
"""


def measure(scale: Scale) -> Iterator[Figure]:
    """Compare rate and memory with a loop of ``apply_async``, and memory with a tenth of the tasks."""
    number = scale(200, 10_000, 100_000)
    with running_redis() as server:
        ways = {way: _publisher(server, way, number) for way in ("loop", "submit")}
        results = in_turns(ways, scale(1, 3, 3))
        _, memory_of_tenth = _publisher(server, "submit", number // 10)()
    rates = medians({way: [rate for rate, _ in each] for way, each in results.items()})
    memory = medians({way: [megabytes for _, megabytes in each] for way, each in results.items()})
    submit, what = f"submit of {number:,}", "loop of apply_async"
    yield Figure(submit, what, rates["submit"], rates["loop"], "/s", 0.8, at_least=True)
    yield Figure(
        f"{submit}, peak memory", f"submit of {number // 10:,}", memory["submit"], memory_of_tenth, "MiB", 10, "above"
    )
    yield Figure(f"{submit}, peak memory", what, memory["submit"], memory["loop"], "MiB", 10, "above")


def _publisher(server: RedisServer, way: str, number: int) -> Callable[[], tuple[float, float]]:
    environment = {**os.environ, "BENCHMARK_REDIS": f"redis://127.0.0.1:{server.port}"}
    command = [sys.executable, "-c", _PROGRAM, way, str(number)]

    def publish() -> tuple[float, float]:
        with server.client() as client:
            client.flushall()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        rate, megabytes = map(float, done.stdout.split())
        return rate, megabytes

    return publish
