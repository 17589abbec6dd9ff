"""What follows from a job's cells, once: its callbacks (rule R15) and its cancellation (rule R17)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from celery_statemanager.records import Cancellation, JobRecord, JobRef
from celery_statemanager.retention import CHANGE_TIMEOUT, change_job, current
from celery_statemanager.stores.base import Store

Send = Callable[[JobRecord, str, str], bool]
"""Publishes a callback: the job, the latch's name and the signature as JSON text. False leaves it to others."""


def publish_due(
    store: Store, ref: JobRef, latches: Iterable[str], send: Send, *, timeout: float = CHANGE_TIMEOUT
) -> int:
    """Publish the callbacks of decided latches; each decision is recorded before, and each publication after.

    A crash between sending and marking sends it again, under the same task id. Whoever decided a latch publishes its
    callback alone: one that fell elsewhere may be on its way from there, and is the sweep's if it stays due.

    Returns: how many were published. Raises: what ``send`` raises; the callback then stays due. JobNotFound,
        StoreContended.
    """
    job, published = current(store, ref), 0
    for name in latches:
        latch = job.latches[name]
        if latch.due and latch.callback is not None and send(job, name, latch.callback):
            change_job(store, ref, partial(_published, name, store.now()), timeout=timeout)
            published += 1
    return published


def _published(name: str, now: int, job: JobRecord) -> JobRecord | None:
    latch = job.latches[name]
    return job.with_latches(**{name: replace(latch, published_at=now)}) if latch.due else None


def cancel(store: Store, ref: JobRef, reason: str | None, *, timeout: float = CHANGE_TIMEOUT) -> bool:
    """Cancel a job by compare-and-set.

    Returns: False when it has settled or was cancelled before. Raises: JobNotFound, StoreContended.
    """

    def cancelled(job: JobRecord) -> JobRecord | None:
        if job.settled or job.cancelled:
            return None
        return replace(job, cancelled=Cancellation(reason, store.now()))

    return change_job(store, ref, cancelled, timeout=timeout) is not None
