"""Large jobs, filled by the stores' own steps, many to a round trip or transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from celery_statemanager import Manager, Status, Store
from celery_statemanager.records import JobRef, Write
from celery_statemanager.stores import steps

TAG = "work"
_AT_ONCE = 5_000


def filled(store: Store, num_tasks: int, job_id: str | None = None) -> Manager:
    """Make a job whose cells are all written, one in ten of them still running; give a reader of it."""
    manager = Manager.create(store, job_id or f"job of {num_tasks}", num_tasks=num_tasks, tags=(TAG,))
    fill = _WAYS.get(type(store).__name__, _one_by_one)
    writes = (_write(row) for row in range(num_tasks))
    while some := list(islice(writes, _AT_ONCE)):
        fill(store, manager.ref, some)
    return manager


def _write(row: int) -> Write:
    status = int(Status.FINISHED) if row % 10 else 2 + row % 98
    return Write(tag=TAG, task_index=row, status=status, event_id=f"{row:032x}")


def _one_by_one(store: Store, ref: JobRef, writes: list[Write]) -> None:
    for write in writes:
        store.write(ref, write)


def _pipelined(store: Store, ref: JobRef, writes: list[Write]) -> None:
    from celery_statemanager.stores.redis.requests import write_call

    layout, script = store._reader.layout(ref), store._scripts.write
    store.write(ref, writes[0])  # from here on the server knows the script
    store._server.call_all(_commands(layout, script.digest, ref, writes, write_call))


def _commands(layout: object, digest: str, ref: JobRef, writes: list[Write], call: Callable) -> Iterator[list]:
    for write in writes:
        keys, args = call(layout, write)
        yield ["EVALSHA", digest, len(keys), *keys, ref.incarnation, *args]


def _in_one_transaction(store: Store, ref: JobRef, writes: list[Write]) -> None:
    from celery_statemanager.stores.sqlite.transaction import SQLiteTransaction

    with store._pool.writing() as db:
        for write in writes:
            place = (write.tag, write.task_index)
            steps.write(SQLiteTransaction(db, store._jobs, ref, store.now(), place), write)


_WAYS = {"RedisStore": _pipelined, "SQLiteStore": _in_one_transaction}
