"""Millions of tasks on PostgreSQL or SQLite: what workers do, the load and the size of the tables, and readers.

    python -m benchmarks.million_sql postgres|sqlite [--tasks 1000000] [--jobs 100] [--writers 2] [--threads 8]

The jobs are submitted with their messages. Each task begins and finishes with the steps of a worker, reads its message
and lets the step that ends it claim the next row. Then the lists, a sweep and the web pages of a job are timed. Then
garbage of at most a million states is collected. PostgreSQL writes durably.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psutil

from benchmarks.million import MOST_COLLECTED, begin_of, check, collect, end_of, new_app, print_rows, readers, submit
from benchmarks.postgres import DURABLE
from celery_statemanager import Job, open_store
from celery_statemanager.integration.outbox.blocks import BlockCache
from celery_statemanager.records import JobKey, JobRef
from celery_statemanager.stores import Outbox
from tests.postgres_kit import PostgresServer, running_postgres

TIMEOUT = 120.0
_TABLES = """
SELECT c.relname, pg_relation_size(c.oid), pg_indexes_size(c.oid), pg_total_relation_size(c.oid),
  s.n_tup_upd, s.n_tup_hot_upd, s.n_dead_tup, s.autovacuum_count
FROM pg_class c JOIN pg_stat_user_tables s ON s.relid = c.oid
WHERE starts_with(c.relname, 'statemanager') ORDER BY 4 DESC
"""


def main() -> None:
    """Run the tasks and print the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.million_sql")
    parser.add_argument("store", choices=["postgres", "sqlite"])
    for name, default in (("tasks", 1_000_000), ("jobs", 100), ("writers", 2), ("threads", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if options.store == "postgres":
            server = stack.enter_context(running_postgres(**DURABLE))
            measure(options, PostgresLoad(server))
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            measure(options, SQLiteLoad(folder / "states.db"))


class PostgresLoad:
    """What tasks cost a PostgreSQL server."""

    def __init__(self, server: PostgresServer) -> None:
        self.url = server.url
        self._server = server

    def cpu(self) -> float:
        """Return the processor time of the server in seconds, ended backends included."""
        server = psutil.Process(self._server.process.pid)
        ended = server.cpu_times()
        running = [each.cpu_times() for each in server.children(recursive=True)]
        own = ended.user + ended.system + ended.children_user + ended.children_system
        return own + sum(each.user + each.system for each in running)

    def describe(self, tasks: int) -> Iterator[tuple[str, str]]:
        """Yield the sizes of the tables, the updates in place and the time of a vacuum."""
        self._server.execute("SELECT pg_stat_force_next_flush()")
        for name, heap, indexes, whole, updates, hot, dead, vacuums in self._server.execute(_TABLES):
            sizes = f"{whole / tasks:,.1f} B per task, {heap / 2**20:,.0f} MiB + {indexes / 2**20:,.0f} MiB of indexes"
            changes = f"{updates:,} updates, {hot / max(updates, 1):.0%} HOT, {dead:,} dead rows, {vacuums} autovacuums"
            yield name, f"{sizes}; {changes}"
        start = time.perf_counter()
        self._server.execute("VACUUM ANALYZE")
        yield "VACUUM ANALYZE", f"{time.perf_counter() - start:.1f} s"


class SQLiteLoad:
    """What tasks cost a SQLite file. The processor time is that of the writers, which contain the engine."""

    def __init__(self, path: Path) -> None:
        self.url = f"sqlite:///{path}"
        self._path = path

    def cpu(self) -> float:
        """Return the processor time of the processes that have ended, in seconds."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    def describe(self, tasks: int) -> Iterator[tuple[str, str]]:
        """Yield the size of the file."""
        size = self._path.stat().st_size
        yield "file", f"{size / 2**20:,.0f} MiB, {size / tasks:,.0f} B per task"


def measure(options: argparse.Namespace, load: PostgresLoad | SQLiteLoad) -> None:
    """Submit and run the jobs, and print what they cost."""
    states, task = new_app(load.url)
    size, window = options.tasks // options.jobs, options.writers * options.threads
    start = time.monotonic()
    jobs = [submit(states, task, f"job {number}", size, window) for number in range(options.jobs)]
    tasks = size * options.jobs
    print_rows([("submit", f"{(time.monotonic() - start) / tasks * 1e6:.0f} us per task")])
    cpu, start = load.cpu(), time.monotonic()
    _run_writers(load.url, jobs, options.writers, options.threads)
    seconds, cpu = time.monotonic() - start, load.cpu() - cpu
    check(jobs, size)
    print_rows(
        [
            ("tasks", f"{tasks:,}, two steps each, in {seconds:,.0f} s: {tasks / seconds:,.0f} tasks/s"),
            ("processor time", f"{cpu:,.0f} s, {cpu / tasks * 1e6:.0f} us per task"),
        ]
    )
    print_rows(load.describe(tasks))
    print_rows(readers(states, jobs[0]))
    garbage = jobs[: max(1, MOST_COLLECTED // size)]
    for job in garbage:
        job.delete()
    print_rows([collect(states, garbage)])


def _run_writers(url: str, jobs: Sequence[Job], writers: int, threads: int) -> None:
    """Let each process work at its share of each job's window, one job after the other."""
    context = multiprocessing.get_context("spawn")
    window = range(min(writers * threads, jobs[0].num_tasks))
    processes = [
        context.Process(target=_write, args=(url, [job.id for job in jobs], window[first::writers]))
        for first in range(writers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0


def _write(url: str, jobs: Sequence[str], window: Sequence[int]) -> None:
    blocks = BlockCache()
    with open_store(url, timeout=TIMEOUT) as store, ThreadPoolExecutor(max(1, len(window))) as pool:
        for job in jobs:
            follow = partial(_follow, store, store.get_job(JobKey(job)).ref, blocks)
            list(pool.map(follow, window))


def _follow(store: Outbox, ref: JobRef, blocks: BlockCache, row: int) -> None:
    """Begin and finish a row, then those that its end has claimed, and so on."""
    rows = [row]
    while rows:
        row = rows.pop()
        blocks.messages(store, ref, row)
        store.begin(ref, begin_of(row))
        rows += store.write(ref, end_of(row)).claimed


if __name__ == "__main__":
    main()
