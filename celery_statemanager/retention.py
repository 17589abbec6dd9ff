"""Tombstones and deletion, and after what time: plain functions over any store (rule R10)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from celery_statemanager.durations import format_duration, to_duration
from celery_statemanager.errors import ConfigurationError, JobNotFound, StoreError
from celery_statemanager.models import SCHEMA_VERSION
from celery_statemanager.records import JobKey, JobRecord, JobRef
from celery_statemanager.stores.base import Store


@dataclass(frozen=True, slots=True)
class Ages:
    """How long a job is idle, in microseconds, until it is hidden and until it is deleted."""

    tombstone: int
    delete: int

    @classmethod
    def parse(cls, tombstone_age: Any, delete_age: Any) -> Ages:
        """Check two ages: texts such as ``30d``, seconds or timedeltas. Raises: ConfigurationError – with the mend."""
        read = {}
        for name, value in (("tombstone age", tombstone_age), ("delete age", delete_age)):
            try:
                read[name] = to_duration(value)
            except (TypeError, ValueError) as error:
                raise ConfigurationError(f"{name}: {error}") from None
        tombstone, delete = read.values()
        if delete <= tombstone:
            raise ConfigurationError(
                f"the delete age ({format_duration(delete)}) must be longer than the tombstone age "
                f"({format_duration(tombstone)}): a job is hidden first and deleted later, such as after 30d and 90d"
            )
        return cls(round(tombstone * 1_000_000), round(delete * 1_000_000))


def find_job(store: Store, key: JobKey) -> JobRecord:
    """Give the job of a name. Raises: JobNotFound; ConfigurationError – a newer release has written it."""
    try:
        job = store.get_job(key)
    except JobNotFound:
        raise JobNotFound(*key, _other_runs(store, key)) from None
    if is_newer(job):
        raise ConfigurationError(
            f"job {job.job_id!r} was written by a newer release (schema {job.schema_version}, this one knows "
            f"{SCHEMA_VERSION}): upgrade celery-statemanager here"
        )
    return job


def _other_runs(store: Store, key: JobKey) -> list[str | None]:
    """Return the runs to name where one was not found; none where the store fails meanwhile."""
    try:
        return [token for token in store.list_runs(key.job_id) if token != key.run_token]
    except StoreError:
        return []


def is_newer(job: JobRecord) -> bool:
    """Whether only a newer release understands a job; other programs number their schemas themselves."""
    return job.schema > SCHEMA_VERSION


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
