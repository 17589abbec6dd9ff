"""A million tasks on a real Redis without Celery, to estimate the load of ten million tasks a day.

    python -m benchmarks.million [--tasks 1000000] [--jobs 100] [--writers 2] [--at-once 50]

Each task begins and finishes with the steps of a worker. A writer simulates ``--at-once`` workers: it sends that many
steps together. The output contains rates, the server's CPU time per step, its memory and its network traffic, and an
extrapolation to ten million tasks a day.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from typing import Any

from benchmarks.filling import load_scripts, send_all
from celery_statemanager import Manager, Status, open_store
from celery_statemanager.records import Begin, JobKey, Write
from tests.servers import running_redis

TAG = "work"
A_DAY = 10_000_000
SECONDS = 86_400


def main() -> None:
    """Run the tasks and print the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.million")
    for name, default in (("tasks", 1_000_000), ("jobs", 100), ("writers", 2), ("at-once", 50)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with running_redis() as server, server.client() as client:
        empty = client.info("memory")["used_memory"]
        size = options.tasks // options.jobs
        before = client.info()
        start = time.monotonic()
        _run_writers(
            server.url, [(f"job {number}", size) for number in range(options.jobs)], options.writers, options.at_once
        )
        seconds = time.monotonic() - start
        _check(server.url, options.jobs, size)
        _print(before, client.info(), client.info("commandstats"), empty, options.jobs * size, seconds)


def _run_writers(url: str, jobs: list[tuple[str, int]], writers: int, at_once: int) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(writers) as pool:
        for job_id, size in jobs:
            with open_store(url, timeout=60.0) as store:
                Manager.create(store, job_id, num_tasks=size, tags=(TAG,))
        shares = [
            (url, job_id, range(first, size, writers), at_once) for job_id, size in jobs for first in range(writers)
        ]
        for _ in pool.imap_unordered(_write_share, shares):
            pass


def _write_share(share: tuple[str, str, range, int]) -> None:
    """Begin and finish some rows of a job, ``at_once`` rows at a time."""
    url, job_id, rows, at_once = share
    with open_store(url, timeout=60.0) as store:
        load_scripts(store)
        ref = store.get_job(JobKey(job_id)).ref
        for first in range(0, len(rows), at_once):
            batch = rows[first : first + at_once]
            send_all(store, ref, [_begin(row) for row in batch])
            send_all(store, ref, [_end(row) for row in batch])


def _begin(row: int) -> Begin:
    return Begin(tag=TAG, task_index=row, event_id=f"b{row:031x}", owner="host:1:abcdef01")


def _end(row: int) -> Write:
    return Write.ending(TAG, row, int(Status.FINISHED), attempt=1)


def _check(url: str, jobs: int, size: int) -> None:
    """Check that every task has finished and every job has settled."""
    with open_store(url, timeout=60.0) as store:
        for number in range(jobs):
            job = store.get_job(JobKey(f"job {number}"))
            _, (column,) = store.column_summaries(job.ref)
            assert column.tally.succeeded == size, (number, column.tally)
            assert job.settled, number


def _print(
    before: dict[str, Any], after: dict[str, Any], stats: dict[str, Any], empty: int, tasks: int, seconds: float
) -> None:
    def growth(name: str) -> float:
        return float(after[name]) - float(before[name])

    cpu = growth("used_cpu_user") + growth("used_cpu_sys")
    steps = stats["cmdstat_evalsha"]
    memory = after["used_memory"] - empty
    traffic_in, traffic_out = growth("total_net_input_bytes"), growth("total_net_output_bytes")
    rows = {
        "tasks": f"{tasks:,}, two steps each, in {seconds:,.0f} s: {tasks / seconds:,.0f} tasks/s",
        "server CPU": f"{cpu:,.0f} s, {cpu / tasks * 1e6:.0f} us per task, {cpu / seconds:.0%} of one core",
        "step": f"{steps['usec_per_call']:.1f} us in the server, {steps['calls']:,} of them",
        "memory": f"{memory / 2**20:,.0f} MiB, {memory / tasks:.0f} bytes per task",
        "network": f"{traffic_in / tasks:,.0f} bytes per task in, {traffic_out / tasks:,.0f} out",
        "10 million a day": (
            f"{A_DAY / SECONDS:.0f} tasks/s on average: {cpu / tasks * A_DAY / SECONDS:.1%} of one core, "
            f"{memory / tasks * A_DAY / 2**30:.1f} GiB stored per day"
        ),
        "capacity of a node": f"{tasks / cpu:,.0f} tasks/s, {tasks / cpu * SECONDS / 1e6:,.0f} million a day",
    }
    for name, value in rows.items():
        print(f"{name:20}{value}")


if __name__ == "__main__":
    main()
