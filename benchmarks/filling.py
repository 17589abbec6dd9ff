"""Create large jobs quickly, with many of a store's own steps in one round trip or transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any

from celery_statemanager import Manager, Status, Store
from celery_statemanager.records import Begin, JobRef, Write
from celery_statemanager.stores import steps
from celery_statemanager.stores.redis import RedisStore
from celery_statemanager.stores.redis.requests import begin_call, write_call
from celery_statemanager.stores.sqlite.transaction import SQLiteTransaction

TAG = "work"
_BATCH_SIZE = 5_000


def create_filled_job(store: Store, num_tasks: int, job_id: str | None = None) -> Manager:
    """Create a job with every cell written, one in ten of them still running. Return a read-only Manager."""
    manager = Manager.create(store, job_id or f"job of {num_tasks}", num_tasks=num_tasks, tags=(TAG,))
    write_all(store, manager.ref, (_write(row) for row in range(num_tasks)))
    return manager


def write_all(store: Store, ref: JobRef, writes: Iterator[Write]) -> None:
    """Write many cells."""
    write_batch = _BATCH_WRITERS.get(type(store).__name__, _write_one_by_one)
    if isinstance(store, RedisStore):
        load_scripts(store)
    while batch := list(islice(writes, _BATCH_SIZE)):
        write_batch(store, ref, batch)


def _write(row: int) -> Write:
    status = int(Status.FINISHED) if row % 10 else 2 + row % 98
    return Write(tag=TAG, task_index=row, status=status, event_id=f"{row:032x}")


def _write_one_by_one(store: Store, ref: JobRef, writes: list[Write]) -> None:
    for write in writes:
        store.write(ref, write)


def load_scripts(store: RedisStore) -> None:
    """Load the scripts of ``send_all`` into the server."""
    for script in (store._scripts.begin, store._scripts.write):
        store._server.call("SCRIPT", "LOAD", script.source)


def send_all(store: RedisStore, ref: JobRef, requests: Sequence[Begin | Write]) -> list[Any]:
    """Send many steps of one kind together and return the replies. Raises: AssertionError if a step is rejected."""
    layout = store._reader.layout(ref)
    begins = isinstance(requests[0], Begin)
    script, call = (store._scripts.begin, begin_call) if begins else (store._scripts.write, write_call)
    calls = [call(layout, each) for each in requests]
    replies = store._server.call_all(
        ["EVALSHA", script.digest, len(keys), *keys, ref.incarnation, *args] for keys, args in calls
    )
    for reply in replies:
        assert isinstance(reply, bytes) or reply[0] in (b"begun", b"written", b"same", b"claimed"), reply
    return replies


def _write_concurrently(store: Store, ref: JobRef, writes: list[Write]) -> None:
    with ThreadPoolExecutor(16) as pool:
        for _ in pool.map(partial(store.write, ref), writes):
            pass


def _write_in_one_transaction(store: Store, ref: JobRef, writes: list[Write]) -> None:
    def write_all(db: sqlite3.Connection) -> None:
        for write in writes:
            place = (write.tag, write.task_index)
            steps.write(SQLiteTransaction.read(db, store._jobs, ref, store.now(), place), write)

    store._pool.write(write_all)


_BATCH_WRITERS = {
    "RedisStore": send_all,
    "SQLiteStore": _write_in_one_transaction,
    "FirestoreStore": _write_concurrently,
}
