"""From a write to whoever follows the job, in another process; and reading what was written before."""

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

from benchmarks.filling import TAG, filled
from benchmarks.harness import Figure, Scale, in_turns, medians
from benchmarks.writes import writing
from celery_statemanager import Manager, open_store
from tests.servers import running_redis

CHANNEL = "bare"
PATIENCE = 30.0


def measure(scale: Scale) -> Iterator[Figure]:
    """Give the figures of following and of replaying."""
    rounds = scale(3, 300, 2_000)
    yield following_redis(rounds)
    yield following_sqlite(rounds)
    states = scale(500, 20_000, 100_000)
    yield replaying_redis(states, scale(1, 5, 9))
    yield replaying_sqlite(states, scale(1, 5, 9))


def following_redis(rounds: int) -> Figure:
    """Compare with a PUBLISH and who waits for it."""
    with running_redis() as server, server.client() as client, open_store(server.url) as store:
        write = writing(store)
        with _Reader(_follow, server.url) as ours, _Reader(_listen, server.port) as peer:
            latencies = {
                "peer": lambda: peer.heard_after(lambda: client.publish(CHANNEL, "x" * 80)),
                "ours": lambda: ours.heard_after(write),
            }
            found = medians(in_turns(latencies, rounds))
    return Figure("Redis write -> subscriber", "PUBLISH -> get_message", *_microseconds(found), "µs", 2.0)


def following_sqlite(rounds: int) -> Figure:
    """Measure alone."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/states.db"
        with open_store(url) as store:
            write = writing(store)
            with _Reader(_follow, url) as ours:
                found = medians(in_turns({"ours": lambda: ours.heard_after(write)}, rounds))
    return Figure("SQLite write -> subscriber", "-", found["ours"] * 1e3, None, "ms", 30, "alone")


def replaying_redis(states: int, rounds: int) -> Figure:
    """Compare with reading the same hash by HSCAN."""
    with running_redis() as server, server.client() as client, open_store(server.url) as store:
        manager = filled(store, states)
        (key,) = client.scan_iter(f"*:cells:{TAG}")
        bare = _timed(lambda: len(list(client.hscan_iter(key, count=1_000))), states)
        ours = _timed(lambda: _replayed(manager, states), states)
        found = medians(in_turns({"peer": bare, "ours": ours}, rounds))
    return Figure(f"Redis replay of {states:,}", "HSCAN of the same", *_milliseconds(found), "ms", 3.0)


def replaying_sqlite(states: int, rounds: int) -> Figure:
    """Compare with selecting the same rows in the same order."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "states.db")
        with open_store(f"sqlite:///{path}") as store:
            manager = filled(store, states)
            connection = sqlite3.connect(path)
            select = "SELECT * FROM cell ORDER BY timestamp, task_index"
            bare = _timed(lambda: len(connection.execute(select).fetchall()), states)
            ours = _timed(lambda: _replayed(manager, states), states)
            found = medians(in_turns({"peer": bare, "ours": ours}, rounds))
            connection.close()
    return Figure(f"SQLite replay of {states:,}", "SELECT of the same", *_milliseconds(found), "ms", 3.0)


class _Reader:
    """A process that says when it heard something, by the clock that all processes of a machine share."""

    def __init__(self, listen: Callable[[Connection, str | int], None], place: str | int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=listen, args=(far, place), daemon=True)

    def __enter__(self) -> _Reader:
        self._process.start()
        assert self._said() == "ready"
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.join()

    def heard_after(self, send: Callable[[], object]) -> float:
        """Give seconds from the start of a call to its being heard."""
        start = time.perf_counter()
        send()
        return float(self._said()) - start

    def _said(self) -> str | float:
        if not self._pipe.poll(PATIENCE):
            raise TimeoutError(f"nothing was heard for {PATIENCE:.0f} s")
        said: str | float = self._pipe.recv()
        return said


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
            if pubsub.get_message(timeout=PATIENCE) is not None:
                pipe.send(time.perf_counter())


def _replayed(manager: Manager, states: int) -> int:
    with manager.subscribe() as events:
        return sum(event.replay for event in islice(events, states))


def _timed(read: Callable[[], int], expected: int) -> Callable[[], float]:
    def timed() -> float:
        start = time.perf_counter()
        found = read()
        seconds = time.perf_counter() - start
        assert found == expected, (found, expected)
        return seconds

    return timed


def _microseconds(found: dict[str, float]) -> tuple[float, float]:
    return found["ours"] * 1e6, found["peer"] * 1e6


def _milliseconds(found: dict[str, float]) -> tuple[float, float]:
    return found["ours"] * 1e3, found["peer"] * 1e3
