"""Processor time of a change that asynchronous subscribers of one process receive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

from benchmarks.harness import Figure, Scale
from celery_statemanager import Manager, Store, open_store

ROWS = 50
MANY = 1_000
PAUSE = 0.02
"""Seconds between two changes, so that each wakes all subscribers."""


def measure(scale: Scale) -> Iterator[Figure]:
    """Yield the figure of many subscribers, compared with one."""
    rounds = scale(5, 200, 1_000)
    with open_store("memory://") as store:
        one = asyncio.run(_seconds_per_change(store, "one", 1, rounds))
        many = asyncio.run(_seconds_per_change(store, "many", MANY, rounds))
    yield Figure(f"a change with {MANY:,} subscribers", "with 1 subscriber", many * 1e3, one * 1e3, "ms", 20.0)


async def _seconds_per_change(store: Store, job_id: str, subscribers: int, rounds: int) -> float:
    """Return the processor time of the process for each change, after all have received it."""
    writers = [Manager.create(store, job_id, num_tasks=ROWS, task_index=0)]
    writers += [Manager.open(store, job_id, task_index=row) for row in range(1, ROWS)]
    received = [0] * subscribers

    async def read(number: int) -> None:
        async for _ in writers[0].asubscribe():
            received[number] += 1

    for writer in writers:
        writer.set_state("load", 1)
    tasks = [asyncio.create_task(read(number)) for number in range(subscribers)]
    await _until(lambda: sum(received) == ROWS * subscribers)
    start = time.process_time()
    for change in range(rounds):
        writers[change % ROWS].set_state("load", 2 + change // ROWS)
        await asyncio.sleep(PAUSE)
    await _until(lambda: sum(received) == (ROWS + rounds) * subscribers)
    used = time.process_time() - start
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return used / rounds


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - an event for each change would be measured too
        await asyncio.sleep(PAUSE)
