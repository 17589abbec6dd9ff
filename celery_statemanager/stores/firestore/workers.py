"""Worker records: a document each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celery_statemanager.records import WorkerRecord
from celery_statemanager.stores.firestore import requests
from celery_statemanager.stores.firestore.database import Database, Found
from celery_statemanager.stores.firestore.errors import PreconditionFailed

PAGE = 50
"""Records read at once; each may take 800 KiB."""


def put(database: Database, worker_id: str, body: str, lease: float) -> None:
    """Write a worker's record; its time is the server's."""
    database.retry([_written(database, worker_id, body, lease)], database.deadline())


def try_acquire(database: Database, name: str, holder: str, seconds: float) -> bool:
    """Write a record unless another holder has it; of several at once the first to commit gets it."""
    deadline = database.deadline()
    document = database.get([database.names.worker(name)], deadline).documents.get(database.names.worker(name))
    turn = None if document is None else _record(document)
    if turn is not None and turn.body != holder and turn.lease_until > database.now():
        return False
    write = _written(database, name, holder, seconds)
    requests.require(write, None if document is None else document.stamp)
    try:
        database.commit([write], deadline)
    except PreconditionFailed:
        return False
    return True


def one(database: Database, worker_id: str) -> WorkerRecord | None:
    """Read a record; None when there is none."""
    name = database.names.worker(worker_id)
    document = database.get([name], database.deadline()).documents.get(name)
    return None if document is None else _record(document)


def every(database: Database) -> Iterator[WorkerRecord]:
    """Yield all records, page by page."""
    collection = database.names.workers.rpartition("/")[2]
    return map(_record, database.pages(database.names.address.root, collection, size=PAGE))


def drop(database: Database, worker_id: str) -> None:
    """Forget a record."""
    database.retry([requests.delete(database.names.worker(worker_id))], database.deadline())


def _written(database: Database, worker_id: str, body: str, lease: float) -> Any:
    fields = {"workerID": worker_id, "body": body, "lease": round(lease * 1_000_000)}
    return requests.stamp_time(database.names.worker(worker_id), fields, "renewedAt")


def _record(document: Found) -> WorkerRecord:
    fields = document.fields
    renewed = int(fields["renewedAt"])
    return WorkerRecord(fields["workerID"], fields["body"], renewed, renewed + fields["lease"])
