"""Eight processes that write to one job of a Redis, or to eight jobs, compared with as many that SET as many bytes."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier

from redis import Redis

from benchmarks.harness import Figure, Scale, in_turns, medians
from benchmarks.writes import MESSAGE
from celery_statemanager import Manager, open_store
from tests.servers import RedisServer, running_redis

PROCESSES = 8

Write = Callable[[int], object]


def measure(scale: Scale) -> Iterator[Figure]:
    """Run eight writers of each kind in turns."""
    writes, rounds = scale(20, 2_000, 5_000), scale(1, 3, 7)
    with running_redis() as server:
        kinds = {"peer": _setter, "one job": _writer_of_one_job, "eight jobs": _writer_of_own_job}
        measures = {name: _seconds(server, kind, writes) for name, kind in kinds.items()}
        seconds = medians(in_turns(measures, rounds))
    for name in ("one job", "eight jobs"):
        each = seconds[name] / writes * 1e6, seconds["peer"] / writes * 1e6
        yield Figure(f"Redis: {PROCESSES} processes writing to {name}", f"{PROCESSES} × SET", *each, "µs", 1.5)


def _seconds(server: RedisServer, kind: Callable[[str, int], Write], writes: int) -> Callable[[], float]:
    """Return a function that runs the writers and returns the seconds from their common start to the last end."""
    context = multiprocessing.get_context("fork")

    def run() -> float:
        with server.client() as client:
            client.flushall()
        with open_store(server.url) as store:
            for job in range(PROCESSES):
                Manager.create(store, str(job), num_tasks=PROCESSES, task_index=0, tags=("work",))
        ready = context.Barrier(PROCESSES + 1)
        arguments = [(server.url, kind, number, writes, ready) for number in range(PROCESSES)]
        processes = [context.Process(target=_run, args=each) for each in arguments]
        for process in processes:
            process.start()
        ready.wait(30)
        start = time.perf_counter()
        for process in processes:
            process.join()
            assert process.exitcode == 0
        return time.perf_counter() - start

    return run


def _run(url: str, kind: Callable[[str, int], Write], number: int, writes: int, ready: Barrier) -> None:
    write = kind(url, number)
    write(0)
    ready.wait(30)
    for count in range(1, writes + 1):
        write(count)


def _setter(url: str, number: int) -> Write:
    client, value = Redis.from_url(url), b"x" * 80
    return lambda _: client.set(f"bare {number}", value)


def _writer_of_one_job(url: str, number: int) -> Write:
    return _writer(url, "0", number)


def _writer_of_own_job(url: str, number: int) -> Write:
    return _writer(url, str(number), number)


def _writer(url: str, job_id: str, number: int) -> Write:
    manager = Manager.open(open_store(url), job_id, task_index=number)
    return lambda count: manager.set_state("work", 2 + count % 90, MESSAGE)
