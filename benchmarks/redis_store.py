"""What the Redis store costs, against the bare commands of the same client on the same server.

    python benchmarks/redis_store.py redis://localhost:6379/0

Prints medians of interleaved runs: a ``set_state`` against a ``SET`` of the same size and a Celery result, the time
from a write to its subscriber against ``PUBLISH`` to ``get_message``, and the server's memory for a state.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Callable

import redis
from celery import Celery

from celery_statemanager import Manager, Status, open_store

ROUNDS = 2_000
MESSAGE = "page 4 of 10"


def main(url: str) -> None:
    """Measure and print."""
    client = redis.Redis.from_url(url)
    with open_store(url + "?prefix=benchmark") as store:
        job_id = f"benchmark {time.time_ns()}"
        manager = Manager.create(store, job_id, num_tasks=1, task_index=0, tags=("a",))
        writes(client, manager, url)
        latency(client, manager)
        manager.delete_job()
        memory(client, store)


def writes(client: redis.Redis, manager: Manager, url: str) -> None:
    """Compare writes; the last one is what a Celery result costs."""
    results = Celery(backend=url).backend
    statuses = iter(range(2, 10**9))
    value = b"x" * 80
    calls = {
        "SET": lambda: client.set("benchmark:value", value),
        "set_state": lambda: manager.set_state("a", next(statuses), MESSAGE),
        "set_state + payload": lambda: manager.set_state("a", next(statuses), MESSAGE, {"rows": 812}),
        "progress": lambda: manager.progress("a", 4, 10, MESSAGE),
        "Celery store_result": lambda: results.store_result("benchmark", {"rows": 812}, "PROGRESS"),
    }
    medians = interleaved(calls)
    for name, median in medians.items():
        print(f"{name:22}{median * 1e6:8.0f} us{median / medians['SET']:8.2f} x SET")


def interleaved(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Time calls in turn, so that whatever slows the machine slows them alike; give medians in seconds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def latency(client: redis.Redis, manager: Manager) -> None:
    """Compare the way from a writer to a reader that waits in another thread."""
    pubsub = client.pubsub()
    pubsub.subscribe("benchmark")
    pubsub.get_message(timeout=1)
    events = manager.subscribe()
    while events.get(0.05):
        pass

    def heard() -> object:
        while (message := pubsub.get_message(timeout=1)) is None:
            pass
        return message

    statuses = iter(range(10**6, 10**9))
    calls = {
        "PUBLISH": (lambda: client.publish("benchmark", MESSAGE), heard),
        "set_state": (lambda: manager.set_state("a", next(statuses), MESSAGE), lambda: events.get(1)),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS // 4):
        for name, (send, receive) in calls.items():
            times[name].append(_until_heard(send, receive))
    events.close()
    for name, each in times.items():
        median = statistics.median(each)
        ratio = median / statistics.median(times["PUBLISH"])
        print(f"{name + ' -> reader':22}{median * 1e6:8.0f} us{ratio:8.2f} x PUBLISH")


def _until_heard(send: Callable[[], object], receive: Callable[[], object]) -> float:
    arrived: list[float] = []
    waiting = threading.Event()

    def wait() -> None:
        waiting.set()
        receive()
        arrived.append(time.perf_counter())

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait()
    time.sleep(0.002)  # until it blocks
    start = time.perf_counter()
    send()
    thread.join()
    return arrived[0] - start


def memory(client: redis.Redis, store: object) -> None:
    """Weigh a job of 10,000 cells."""
    for kind, status, rounds in (("running", 40, 1), ("finished", int(Status.FINISHED), 2)):
        job_id = f"weighed {time.time_ns()}"
        for row in range(10_000):
            manager = (Manager.create if row == 0 else Manager.open)(
                store, job_id, task_index=row, **({"num_tasks": 10_000, "tags": ("a",)} if row == 0 else {})
            )
            for _ in range(rounds):
                manager.set_state("a", status, MESSAGE)
        keys = list(client.scan_iter(f"benchmark:{{{job_id.replace(' ', '%20')}}}*"))
        sizes = {key.decode().rpartition("}")[2]: client.memory_usage(key, samples=0) for key in keys}
        print(f"{kind}: {sum(sizes.values()) / 10_000:.0f} bytes a state; {sizes}")
        manager.delete_job()


if __name__ == "__main__":
    main(*sys.argv[1:])
