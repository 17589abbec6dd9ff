"""Tombstones and deletion: plain functions over any store (rule R10)."""

from __future__ import annotations

from dataclasses import replace

from celery_statemanager.errors import JobNotFound
from celery_statemanager.records import JobRecord, JobRef
from celery_statemanager.stores.base import Store


def current(store: Store, ref: JobRef) -> JobRecord:
    """Give the job as it is now. Raises: JobNotFound – also when the key belongs to another incarnation by now."""
    job = store.get_job(ref.key)
    if job.incarnation != ref.incarnation:
        raise JobNotFound(*ref.key)
    return job


def tombstone_job(store: Store, ref: JobRef) -> bool:
    """Mark a job deleted; its states stay readable and writable. False when it was marked. Raises: JobNotFound."""
    while True:
        job = current(store, ref)
        if job.tombstoned_at is not None:
            return False
        if store.update_job(replace(job, tombstoned_at=store.now())) is not None:
            return True


def delete_job(store: Store, ref: JobRef) -> None:
    """Delete a job and all its states. Raises: JobNotFound."""
    store.delete_job(current(store, ref))
    while store.purge():
        pass
