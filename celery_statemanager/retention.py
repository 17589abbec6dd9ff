"""Tombstone and delete jobs, in any store (rule R10)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from celery_statemanager.deadline import Deadline
from celery_statemanager.durations import format_duration, to_duration
from celery_statemanager.errors import ConfigurationError, JobNotFound, StoreContended, StoreError
from celery_statemanager.models import SCHEMA_VERSION
from celery_statemanager.records import JobKey, JobRecord, JobRef
from celery_statemanager.stores.base import Store


@dataclass(frozen=True, slots=True)
class Ages:
    """Idle times in microseconds after which a job is hidden and after which it is deleted."""

    tombstone: int
    delete: int

    @classmethod
    def parse(cls, tombstone_age: Any, delete_age: Any) -> Ages:
        """Return both ages, checked: a text such as ``30d``, seconds or a timedelta. Raises: ConfigurationError."""
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
                f"({format_duration(tombstone)}): a job is hidden first and deleted later; set for example 30d and 90d"
            )
        return cls(round(tombstone * 1_000_000), round(delete * 1_000_000))


def find_job(store: Store, key: JobKey) -> JobRecord:
    """Return the job with this name. Raises: JobNotFound; ConfigurationError – a newer release has written it."""
    try:
        job = store.get_job(key)
    except JobNotFound:
        raise JobNotFound(*key, _other_runs(store, key)) from None
    if is_newer(job):
        raise ConfigurationError(
            f"job {job.job_id!r} was written by a newer release (schema {job.schema_version}, this release supports "
            f"{SCHEMA_VERSION}): upgrade celery-statemanager here"
        )
    return job


def _other_runs(store: Store, key: JobKey) -> list[str | None]:
    """Return the other runs of a job that was not found, for the error message; none if the store fails."""
    try:
        return [token for token in store.list_runs(key.job_id) if token != key.run_token]
    except StoreError:
        return []


def is_newer(job: JobRecord) -> bool:
    """Return whether only a newer release can read the job; the schema numbers of other programs do not count."""
    return job.schema > SCHEMA_VERSION


def current(store: Store, ref: JobRef) -> JobRecord:
    """Return the current record of this incarnation. Raises: JobNotFound – also if its name has a newer incarnation."""
    job = store.get_job(ref.key)
    if job.incarnation != ref.incarnation:
        raise JobNotFound(*ref.key)
    return job


CHANGE_TIMEOUT = 10.0
"""Seconds for which a change of a job record is retried while other processes change it."""


def change_job(
    store: Store, ref: JobRef, change: Callable[[JobRecord], JobRecord | None], *, timeout: float = CHANGE_TIMEOUT
) -> tuple[str, ...] | None:
    """Change a job's record by compare-and-set; retry while other writers change it.

    Args:
        change: returns the changed record, or None for no change; called with the current record at each try.

    Returns: the names of the latches that this decided; None if ``change`` made no change.
    Raises: JobNotFound; StoreContended – others changed the job at each try.
    """
    deadline = Deadline(timeout)
    while True:
        changed = change(current(store, ref))
        if changed is None:
            return None
        decided = store.update_job(changed)
        if decided is not None:
            return decided
        error = StoreError(f"job {ref.key.job_id!r} was changed by other processes at each try; try again")
        deadline.pause(error, StoreContended)


def tombstone_job(store: Store, ref: JobRef, *, timeout: float = CHANGE_TIMEOUT) -> bool:
    """Mark a job deleted; its states stay readable and writable.

    Returns: False if it was already marked. Raises: JobNotFound, StoreContended.
    """

    def mark(job: JobRecord) -> JobRecord | None:
        return None if job.tombstoned_at is not None else replace(job, tombstoned_at=store.now())

    return change_job(store, ref, mark, timeout=timeout) is not None


PURGED_AT_DELETION = 1_000
"""The approximate number of rows that ``delete_job`` removes at once; garbage collection removes the rest."""


def delete_job(store: Store, ref: JobRef) -> None:
    """Delete a job and all its states. Raises: JobNotFound."""
    store.delete_job(current(store, ref), purge=PURGED_AT_DELETION)
