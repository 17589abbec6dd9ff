"""Time, memory and stored bytes of publishing many tasks, each time in a new process."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from benchmarks.harness import Figure, Scale, in_turns
from tests.servers import RedisServer, running_redis

_PROGRAM = """
import sys, time, zlib
from benchmarks import app as module
from benchmarks.harness import peak_memory
way, name, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
app, states, task = module.app, module.states, getattr(module, name)
paths = (f"s3://images/{row:08}.png" for row in range(number))
app.connection_for_write().ensure_connection()
states.store.now()
start = time.perf_counter()
if way == "loop":
    for path in paths:
        task.apply_async((path,))
elif way == "one producer":
    with app.producer_or_acquire() as producer:
        for path in paths:
            task.apply_async((path,), producer=producer)
else:
    job = states.submit((task.s(path) for path in paths), max_in_flight=200 if way == "window" else None)
seconds = time.perf_counter() - start
memory, row, stored = peak_memory(), 0, 0
while way in ("submit", "window") and row < number:
    row, block = states.store.get_block(job.manager.ref, row)
    row += zlib.decompress(block).count(bytes([10])) + 1
    stored += len(block)
print(seconds / number * 1e6, memory, stored / number)
"""


class _Cost(NamedTuple):
    """The cost of one way to publish tasks: microseconds per task, MiB in all, stored bytes per task."""

    time: float
    memory: float
    stored: float


def measure(scale: Scale) -> Iterator[Figure]:
    """Compare time and memory with loops of ``apply_async``, and memory with a tenth of the tasks.

    With a limit, ``submit`` returns when all messages are stored and the first ones are published. Celery makes each
    message of a task whose class overrides ``apply_async``.
    """
    number = scale(200, 10_000, 100_000)
    looped = scale(200, 10_000, 20_000)
    with running_redis() as server:
        ways = {
            "one producer": _publisher(server, "one producer", "image", looped),
            "submit": _publisher(server, "submit", "image", number),
            "loop": _publisher(server, "loop", "image", looped),
            "window": _publisher(server, "window", "image", number),
            "loop of tenant": _publisher(server, "loop", "image_of_tenant", looped),
            "window of tenant": _publisher(server, "window", "image_of_tenant", number),
        }
        costs = {way: _medians(each) for way, each in in_turns(ways, scale(1, 3, 3)).items()}
        tenth = _publisher(server, "submit", "image", number // 10)()
    what, loop, one = f"submit of {number:,}", "loop of apply_async", "loop with one producer"
    submit, producer, window = costs["submit"], costs["one producer"], costs["window"]
    yield Figure(what, one, 1e6 / submit.time, 1e6 / producer.time, "/s", 0.8, at_least=True)
    yield Figure(f"{what}, 200 in flight", loop, window.time, costs["loop"].time, "µs", 0.1)
    tenant = costs["window of tenant"], costs["loop of tenant"]
    yield Figure(f"{what}, 200 in flight, own apply_async", loop, tenant[0].time, tenant[1].time, "µs", 0.35)
    yield Figure(f"{what}, stored message", "-", window.stored, None, "B", 60, "alone")
    memory = f"{what}, peak memory"
    yield Figure(memory, f"submit of {number // 10:,}", submit.memory, tenth.memory, "MiB", 10, "above")
    yield Figure(memory, one, submit.memory, producer.memory, "MiB", 10, "above")


def _medians(costs: list[_Cost]) -> _Cost:
    return _Cost(*map(statistics.median, zip(*costs, strict=True)))


def _publisher(server: RedisServer, way: str, task: str, number: int) -> Callable[[], _Cost]:
    environment = {**os.environ, "BENCHMARK_REDIS": f"redis://127.0.0.1:{server.port}"}
    command = [sys.executable, "-c", _PROGRAM, way, task, str(number)]

    def publish() -> _Cost:
        with server.client() as client:
            client.flushall()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return _Cost(*map(float, done.stdout.split()))

    return publish
