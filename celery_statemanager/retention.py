"""Tombstones and deletion: plain functions over any store (rule R10)."""

from __future__ import annotations

from dataclasses import replace

from celery_statemanager.errors import ConfigurationError, JobNotFound
from celery_statemanager.models import SCHEMA_VERSION
from celery_statemanager.records import JobKey, JobRecord, JobRef
from celery_statemanager.stores.base import Store


def find_job(store: Store, key: JobKey) -> JobRecord:
    """Give the job of a name. Raises: JobNotFound; ConfigurationError – a newer release has written it."""
    job = store.get_job(key)
    if is_newer(job):
        raise ConfigurationError(
            f"job {job.job_id!r} was written by a newer release (schema {job.schema_version}, this one knows "
            f"{SCHEMA_VERSION}): upgrade celery-statemanager here"
        )
    return job


def is_newer(job: JobRecord) -> bool:
    """Whether only a newer release understands a job; other programs number their schemas themselves."""
    return job.incarnation != "" and job.schema_version > SCHEMA_VERSION


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
