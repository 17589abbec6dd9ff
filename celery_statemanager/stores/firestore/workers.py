"""Worker records, one document each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celery_statemanager.records import WorkerRecord
from celery_statemanager.stores.firestore import requests
from celery_statemanager.stores.firestore.database import Database, Document
from celery_statemanager.stores.firestore.errors import PreconditionFailed
from celery_statemanager.stores.firestore.timings import in_microseconds

PAGE = 50
"""Records in one page. Each may take 800 KiB."""


def put(database: Database, worker_id: str, body: str, lease: float) -> None:
    """Write a worker's record, with the server's time."""
    database.retry([_put_request(database, worker_id, body, lease)], database.deadline())


def try_acquire(database: Database, name: str, holder: str, seconds: float) -> bool:
    """Write a record unless another holder's lease is valid. Of concurrent callers, the first to commit succeeds."""
    deadline = database.deadline()
    document = database.get([database.names.worker(name)], deadline).documents.get(database.names.worker(name))
    record = None if document is None else _record(document)
    if record is not None and record.body != holder and record.lease_until > database.now():
        return False
    write = _put_request(database, name, holder, seconds)
    requests.require(write, None if document is None else document.update_time)
    try:
        database.commit([write], deadline)
    except PreconditionFailed:
        return False
    return True


def get(database: Database, worker_id: str) -> WorkerRecord | None:
    """Return a worker's record, or None if there is none."""
    name = database.names.worker(worker_id)
    document = database.get([name], database.deadline()).documents.get(name)
    return None if document is None else _record(document)


def records(database: Database) -> Iterator[WorkerRecord]:
    """Yield all records, reading them page by page."""
    collection = database.names.workers.rpartition("/")[2]
    return map(_record, database.pages(database.names.address.root, collection, size=PAGE))


def drop(database: Database, worker_id: str) -> None:
    """Delete a worker's record."""
    database.retry([requests.delete(database.names.worker(worker_id))], database.deadline())


def _put_request(database: Database, worker_id: str, body: str, lease: float) -> Any:
    fields = {"workerID": worker_id, "body": body, "lease": in_microseconds(lease)}
    return requests.stamp_time(database.names.worker(worker_id), fields, "renewedAt")


def _record(document: Document) -> WorkerRecord:
    fields = document.fields
    renewed = int(fields["renewedAt"])
    return WorkerRecord(fields["workerID"], fields["body"], renewed, renewed + fields["lease"])
