"""Latency from a write to a subscriber in another process, and the duration of a replay."""

from __future__ import annotations

import multiprocessing
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path

import redis

from benchmarks.filling import TAG, create_filled_job
from benchmarks.harness import Figure, Scale, in_turns, medians
from benchmarks.writes import state_writer
from celery_statemanager import Manager, open_store
from tests.servers import running_redis

CHANNEL = "bare"
TIMEOUT = 30.0


def measure(scale: Scale) -> Iterator[Figure]:
    """Yield the figures of live changes and of replays."""
    rounds = scale(3, 300, 2_000)
    yield following_redis(rounds)
    yield following_sqlite(rounds)
    states = scale(500, 20_000, 100_000)
    yield replaying_redis(states, scale(1, 5, 9))
    yield replaying_sqlite(states, scale(1, 5, 9))


def following_redis(rounds: int) -> Figure:
    """Compare with a PUBLISH to a waiting client."""
    with running_redis() as server, server.client() as client, open_store(server.url) as store:
        write = state_writer(store)
        with _Reader(_follow, server.url) as ours, _Reader(_listen, server.port) as peer:
            latencies = {
                "peer": lambda: peer.latency_of(lambda: client.publish(CHANNEL, "x" * 80)),
                "ours": lambda: ours.latency_of(write),
            }
            results = medians(in_turns(latencies, rounds))
    return Figure("Redis write -> subscriber", "PUBLISH -> get_message", *_microseconds(results), "µs", 2.0)


def following_sqlite(rounds: int) -> Figure:
    """Measure without a peer."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/states.db"
        with open_store(url) as store:
            write = state_writer(store)
            with _Reader(_follow, url) as ours:
                results = medians(in_turns({"ours": lambda: ours.latency_of(write)}, rounds))
    return Figure("SQLite write -> subscriber", "-", results["ours"] * 1e3, None, "ms", 30, "alone")


def replaying_redis(states: int, rounds: int) -> Figure:
    """Compare with an HSCAN of the same hash."""
    with running_redis() as server, server.client() as client, open_store(server.url) as store:
        manager = create_filled_job(store, states)
        (key,) = client.scan_iter(f"*:cells:{TAG}")
        bare = _timed(lambda: len(list(client.hscan_iter(key, count=1_000))), states)
        ours = _timed(lambda: _count_replayed(manager, states), states)
        results = medians(in_turns({"peer": bare, "ours": ours}, rounds))
    return Figure(f"Redis replay of {states:,}", "HSCAN of the same cells", *_milliseconds(results), "ms", 3.0)


def replaying_sqlite(states: int, rounds: int) -> Figure:
    """Compare with a SELECT of the same rows in the same order."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "states.db")
        with open_store(f"sqlite:///{path}") as store:
            manager = create_filled_job(store, states)
            connection = sqlite3.connect(path)
            select = "SELECT * FROM cell ORDER BY timestamp, task_index"
            bare = _timed(lambda: len(connection.execute(select).fetchall()), states)
            ours = _timed(lambda: _count_replayed(manager, states), states)
            results = medians(in_turns({"peer": bare, "ours": ours}, rounds))
            connection.close()
    return Figure(f"SQLite replay of {states:,}", "SELECT of the same rows", *_milliseconds(results), "ms", 3.0)


class _Reader:
    """A process that reports when it received something, by a clock that all processes of a machine share."""

    def __init__(self, listen: Callable[[Connection, str | int], None], place: str | int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=listen, args=(far, place), daemon=True)

    def __enter__(self) -> _Reader:
        self._process.start()
        assert self._report() == "ready"
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.join()

    def latency_of(self, send: Callable[[], object]) -> float:
        """Return the seconds from the start of ``send`` until the process received the message."""
        start = time.perf_counter()
        send()
        return float(self._report()) - start

    def _report(self) -> str | float:
        if not self._pipe.poll(TIMEOUT):
            raise TimeoutError(f"the reader received nothing within {TIMEOUT:.0f} s")
        report: str | float = self._pipe.recv()
        return report


def _follow(pipe: Connection, url: str) -> None:
    with open_store(url) as store, Manager.open(store, "writes").subscribe() as events:
        while events.get(0.2):
            pass
        pipe.send("ready")
        for _ in events:
            pipe.send(time.perf_counter())


def _listen(pipe: Connection, port: int) -> None:
    with redis.Redis(port=port).pubsub() as pubsub:
        pubsub.subscribe(CHANNEL)
        while pubsub.get_message(timeout=1.0) is None:
            pass
        pipe.send("ready")
        while True:
            if pubsub.get_message(timeout=TIMEOUT) is not None:
                pipe.send(time.perf_counter())


def _count_replayed(manager: Manager, states: int) -> int:
    with manager.subscribe() as events:
        return sum(event.replay for event in islice(events, states))


def _timed(read: Callable[[], int], expected: int) -> Callable[[], float]:
    def timed() -> float:
        start = time.perf_counter()
        count = read()
        seconds = time.perf_counter() - start
        assert count == expected, (count, expected)
        return seconds

    return timed


def _microseconds(results: dict[str, float]) -> tuple[float, float]:
    return results["ours"] * 1e6, results["peer"] * 1e6


def _milliseconds(results: dict[str, float]) -> tuple[float, float]:
    return results["ours"] * 1e3, results["peer"] * 1e3
