"""Worker records: a document each."""

from __future__ import annotations

from celery_statemanager.records import WorkerRecord
from celery_statemanager.stores.firestore import requests
from celery_statemanager.stores.firestore.database import Database, Found


def put(database: Database, worker_id: str, body: str, lease: float) -> None:
    """Write a worker's record; its time is the server's."""
    fields = {"workerID": worker_id, "body": body, "lease": round(lease * 1_000_000)}
    write = requests.stamp_time(database.names.worker(worker_id), fields, "renewedAt")
    database.insist([write], database.deadline())


def one(database: Database, worker_id: str) -> WorkerRecord | None:
    """Read a record; None when there is none."""
    name = database.names.worker(worker_id)
    document = database.get([name], database.deadline()).documents.get(name)
    return None if document is None else _record(document)


def every(database: Database) -> list[WorkerRecord]:
    """Read all records."""
    collection = database.names.workers.rpartition("/")[2]
    return [_record(document) for document in database.pages(database.names.address.root, collection)]


def drop(database: Database, worker_id: str) -> None:
    """Forget a record."""
    database.insist([requests.delete(database.names.worker(worker_id))], database.deadline())


def _record(document: Found) -> WorkerRecord:
    fields = document.fields
    renewed = int(fields["renewedAt"])
    return WorkerRecord(fields["workerID"], fields["body"], renewed, renewed + fields["lease"])
