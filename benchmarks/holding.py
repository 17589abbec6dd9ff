"""The lease of a worker that holds many messages with an ETA: its processor time, compared with few."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

from benchmarks.harness import Figure, Scale, in_turns, medians
from benchmarks.workers import cpu_seconds, load_app, running_worker
from celery_statemanager import leases
from celery_statemanager.leases import Report
from tests.servers import RedisServer, running_redis, wait_for

FEW = 100
LATER = 7_200
"""Seconds until a row may begin. Longer than the measurement."""


def measure(scale: Scale) -> Iterator[Figure]:
    """Run two workers and measure both at the same time, several times."""
    many, seconds, rounds = scale(200, 2_000, 10_000), scale(1.0, 10.0, 30.0), scale(1, 2, 4)
    with running_redis() as server, ExitStack() as stack:
        pids = {"few": _start_worker(stack, server, "few", FEW), "many": _start_worker(stack, server, "many", many)}

        def measured() -> dict[str, float]:
            before = {name: cpu_seconds(pid) for name, pid in pids.items()}
            time.sleep(seconds)
            return {name: (cpu_seconds(pid) - before[name]) / seconds * 1e3 for name, pid in pids.items()}

        (samples,) = in_turns({"both": measured}, rounds).values()
        found = medians({name: [each[name] for each in samples] for name in pids})
    what = f"a second of a worker that holds {many:,} rows"
    yield Figure(what, f"that holds {FEW}", found["many"], found["few"], "ms", 2.0, "above")


def _start_worker(stack: ExitStack, server: RedisServer, queue: str, rows: int) -> int:
    """Start a worker, give it rows, and return its process id when its record lists them."""
    worker = stack.enter_context(running_worker(server, "threads", 1, queue, BENCHMARK_PREFETCH="0"))
    module = load_app(server)
    module.states.submit(module.tracked.s().set(queue=queue, countdown=LATER) for _ in range(rows))

    def listed() -> bool:
        return any(
            len([*Report.from_record(record).received]) >= rows
            for record in leases.each_worker(module.states.store)
            if record.worker_id.startswith(queue)
        )

    wait_for(listed, f"the record of {queue} with {rows} rows")
    return worker.pid
