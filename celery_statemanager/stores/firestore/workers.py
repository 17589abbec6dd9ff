"""Worker records: a document each."""

from __future__ import annotations

from celery_statemanager.records import WorkerRecord
from celery_statemanager.stores.firestore import requests
from celery_statemanager.stores.firestore.database import Database


def put(database: Database, worker_id: str, body: str, lease: float) -> None:
    """Write a worker's record; its time is the server's."""
    fields = {"workerID": worker_id, "body": body, "lease": round(lease * 1_000_000)}
    write = requests.stamp_time(database.names.worker(worker_id), fields, "renewedAt")
    database.insist([write], database.deadline())


def every(database: Database) -> list[WorkerRecord]:
    """Read all records."""
    collection = database.names.workers.rpartition("/")[2]
    records = []
    for document in database.pages(database.names.address.root, collection):
        fields = document.fields
        renewed = int(fields["renewedAt"])
        records.append(WorkerRecord(fields["workerID"], fields["body"], renewed, renewed + fields["lease"]))
    return records


def drop(database: Database, worker_id: str) -> None:
    """Forget a record."""
    database.insist([requests.delete(database.names.worker(worker_id))], database.deadline())
