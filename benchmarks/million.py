"""Millions of tasks on a real Redis: what workers send, the size and load of the server, readers and garbage.

    python -m benchmarks.million [--tasks 1000000] [--jobs 100] [--writers 2] [--at-once 50]

The jobs are submitted with their messages. Each task begins and finishes with the steps of a worker, reads its message
and lets the step that ends it claim the next row. A writer simulates ``--at-once`` workers: it sends that many steps
together. Then the lists, a sweep and the web pages of a job are timed. At last, garbage of at most a million states is
collected while another client measures its own latency.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.synchronize import Event
from typing import Any

from celery import Celery
from redis import Redis

from benchmarks.filling import load_scripts, send_all
from celery_statemanager import Job, StatefulTask, StateManager, Status, collect_garbage, open_store
from celery_statemanager.integration.outbox.blocks import BlockCache
from celery_statemanager.overview import Wanted, newest_page
from celery_statemanager.records import Begin, JobKey, Write
from celery_statemanager.stores.redis.requests import write_reply
from celery_statemanager.sweep import Sweep
from tests.servers import RedisServer, running_redis
from tests.sweep_actions import RecordedActions
from tests.web_kit import everyone, serving

TAG = "work"
A_DAY = 10_000_000
SECONDS = 86_400
MOST_COLLECTED = 1_000_000
PROBE_PAUSE = 0.0005
"""Seconds between two commands of the client that measures its latency."""


def main() -> None:
    """Run the tasks and print the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.million")
    for name, default in (("tasks", 1_000_000), ("jobs", 100), ("writers", 2), ("at-once", 50)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with running_redis() as server, server.client() as client:
        states, task = new_app(server.url)
        empty = client.info("memory")["used_memory"]
        size, shares = options.tasks // options.jobs, max(1, options.writers // options.jobs)
        start = time.monotonic()
        window = options.at_once * shares
        jobs = [submit(states, task, f"job {number}", size, window) for number in range(options.jobs)]
        print_rows([("submit", f"{(time.monotonic() - start) / (size * options.jobs) * 1e6:.0f} us per task")])
        before, start = client.info(), time.monotonic()
        client.config_resetstat()
        _run_writers(server.url, jobs, options.writers, shares, options.at_once)
        seconds = time.monotonic() - start
        check(jobs, size)
        _print_load(before, client.info(), client.info("commandstats"), empty, options.jobs * size, seconds)
        print_rows(readers(states, jobs[0]))
        print_rows(_garbage(server, states, jobs[: max(1, MOST_COLLECTED // size)]))


def new_app(url: str) -> tuple[StateManager, Any]:
    """Return the states and the task of a program that uses a store."""
    app = Celery("million", broker="memory://", set_as_current=False)
    app.conf.update(statemanager_store_url=url, statemanager_store_timeout=60.0)
    states = StateManager(app)

    @app.task(base=StatefulTask, tag=TAG, shared=False, name="million.work")
    def work(path: str) -> str:
        return path

    return states, work


def submit(states: StateManager, task: Any, job_id: str, size: int, window: int) -> Job:
    """Submit a job with the messages of its tasks."""
    members = (task.s(f"s3://images/{row:08}.png") for row in range(size))
    return states.submit(members, job_id=job_id, max_in_flight=window)


def _run_writers(url: str, jobs: Sequence[Job], writers: int, shares: int, at_once: int) -> None:
    context = multiprocessing.get_context("spawn")
    window = range(min(at_once * shares, jobs[0].num_tasks))
    with context.Pool(writers) as pool:
        work = [(url, job.id, window[first::shares]) for job in jobs for first in range(shares)]
        for _ in pool.imap_unordered(_write_share, work):
            pass


def _write_share(share: tuple[str, str, range]) -> None:
    """Begin and finish the rows of a share of the window, then those that their ends have claimed, and so on."""
    url, job_id, window = share
    rows: Sequence[int] = window
    blocks = BlockCache()
    with open_store(url, timeout=60.0) as store:
        load_scripts(store)
        ref = store.get_job(JobKey(job_id)).ref
        while rows:
            for row in rows:
                blocks.messages(store, ref, row)
            send_all(store, ref, [begin_of(row) for row in rows])
            ends = [end_of(row) for row in rows]
            replies = zip(ends, send_all(store, ref, ends), strict=True)
            rows = [row for end, reply in replies for row in write_reply(ref, end, reply).claimed]


def begin_of(row: int) -> Begin:
    """Return what a worker sends when a task begins."""
    return Begin(tag=TAG, task_index=row, event_id=f"b{row:031x}", owner="host:1:abcdef01", may_wait=True)


def end_of(row: int) -> Write:
    """Return what a worker sends when a task finishes; the reply names the row that it publishes next."""
    write = Write.ending(TAG, row, int(Status.FINISHED), attempt=1)
    write.publisher = "host:1:abcdef01"
    return write


def check(jobs: Sequence[Job], size: int) -> None:
    """Check that every task has finished and every job has settled."""
    for job in jobs:
        summary = job.summary(indexes=False)
        assert summary.finished == size, (job.id, summary)
        assert job.settled, job.id


def _print_load(
    before: dict[str, Any], after: dict[str, Any], stats: dict[str, Any], empty: int, tasks: int, seconds: float
) -> None:
    def growth(name: str) -> float:
        return float(after[name]) - float(before[name])

    cpu = growth("used_cpu_user") + growth("used_cpu_sys")
    steps = stats["cmdstat_evalsha"]
    memory = after["used_memory"] - empty
    traffic_in, traffic_out = float(after["total_net_input_bytes"]), float(after["total_net_output_bytes"])
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
    print_rows(rows.items())


def readers(states: StateManager, job: Job) -> Iterator[tuple[str, str]]:
    """Time what people and sweeps read."""
    store = states.store
    yield "newest 50 jobs", _timed(lambda: newest_page(store, Wanted(), 50))
    yield "summary of a job", _timed(lambda: job.summary(indexes=False))
    yield "sweep", _timed(lambda: Sweep(store, RecordedActions(store), lease=30.0, max_lost=3).run())
    with serving(states.web(authorize=everyone)) as client:
        for path in ("", "/grid?tag=work", "/states?tag=work&limit=100", "/states?class=failed&limit=100"):
            url = f"/api/jobs/{job.id}{path}"
            yield f"GET …{path}", _timed(lambda url=url: client.get(url).raise_for_status())


def _timed(call: Callable[[], object], times: int = 5) -> str:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return f"{statistics.median(seconds) * 1e3:,.1f} ms, at most {max(seconds) * 1e3:,.1f}"


def _garbage(server: RedisServer, states: StateManager, jobs: Sequence[Job]) -> Iterator[tuple[str, str]]:
    """Measure the latency of another client while these jobs are deleted, and without it."""
    yield "other client, idle", _probed(server, lambda: time.sleep(5))
    for job in jobs:
        job.delete()
    found: list[tuple[str, str]] = []
    latencies = _probed(server, lambda: found.append(collect(states, jobs)))
    name, seconds = found[0]
    yield name, f"{seconds}; other client {latencies}"


def collect(states: StateManager, jobs: Sequence[Job]) -> tuple[str, str]:
    """Collect the states of deleted jobs. Return their number and the time of the collection, as text."""
    start = time.perf_counter()
    collect_garbage(states.store, tombstone_age=3_600, delete_age=7_200)
    return f"garbage of {sum(job.num_tasks for job in jobs):,}", f"{time.perf_counter() - start:,.2f} s"


def _probed(server: RedisServer, call: Callable[[], object]) -> str:
    context = multiprocessing.get_context("spawn")
    end, (near, far) = context.Event(), context.Pipe()
    probe = context.Process(target=_probe, args=(server.port, end, far))
    probe.start()
    assert near.recv() == "ready"
    call()
    end.set()
    latencies: list[float] = sorted(near.recv())
    probe.join()
    shares = {"median": 0.5, "99.9 %": 0.999}
    found = [f"{name} {latencies[int(len(latencies) * share)] * 1e3:.2f} ms" for name, share in shares.items()]
    return ", ".join([*found, f"at most {latencies[-1] * 1e3:.2f} ms"])


def _probe(port: int, end: Event, pipe: Any) -> None:
    client, latencies = Redis(port=port), []
    client.set("probe", "x")
    pipe.send("ready")
    while not end.wait(PROBE_PAUSE):
        start = time.perf_counter()
        client.get("probe")
        latencies.append(time.perf_counter() - start)
    pipe.send(latencies)


def print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values in two columns."""
    for name, value in rows:
        print(f"{name:36}{value}", flush=True)


if __name__ == "__main__":
    main()
