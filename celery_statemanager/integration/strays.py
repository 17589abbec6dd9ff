"""Tasks of jobs that this process cannot track: said once of each job, which would wait for ever without a word."""

from __future__ import annotations

import logging
from functools import lru_cache

from celery_statemanager.records import JobRef

logger = logging.getLogger(__name__)


@lru_cache(maxsize=1_000)
def tell_of_no_manager(app: str | None, job: JobRef) -> None:
    """Say that tasks of a job run in an app, of this name, that tracks nothing."""
    logger.error(
        "app %r has no StateManager: the states of its tasks are not written; "
        "call StateManager(app) in a module that its workers load",
        app,
        extra={"job_id": job.key.job_id},
    )


@lru_cache(maxsize=1_000)
def tell_of_unknown_job(store: str, job: JobRef) -> None:
    """Say that tasks of a job are here, and the job is not in the store, which is shown as this."""
    logger.warning(
        "job %r is not in this worker's store, %s: it was deleted, or submitted with another statemanager_store_url "
        "(a relative path begins at each process's own working directory)",
        job.key.job_id,
        store,
        extra={"job_id": job.key.job_id},
    )
