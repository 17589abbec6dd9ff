"""When a broker may have put messages back into their queues: when the connection of a worker has ended (rule R19)."""

from __future__ import annotations

from celery_statemanager.stores.capabilities import WorkerRegistry

RECORD = "~put-back"
"""The worker id of the record that is written whenever a connection ends. Only its time is used."""


def note(store: WorkerRegistry) -> None:
    """Record that the connection of a worker ends now, or has ended. Raises: StoreError.

    This must precede the first record of the worker that does not list what it had received.
    """
    store.put_worker(RECORD, "{}", 0)


def drop_worker(store: WorkerRegistry, worker_id: str) -> None:
    """Delete the record of a worker that has gone or is about to close its connection. Raises: StoreError."""
    note(store)
    store.drop_worker(worker_id)


def noted_at(store: WorkerRegistry) -> int:
    """Return the time at which a connection ended last; 0 if none has. Raises: StoreError."""
    record = store.get_worker(RECORD)
    return 0 if record is None else record.renewed_at
