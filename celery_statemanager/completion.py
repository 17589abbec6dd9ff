"""What follows from a job's cells, once: its callbacks (rule R15) and its cancellation (rule R17)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from celery_statemanager.records import Cancellation, JobRecord, JobRef
from celery_statemanager.retention import current
from celery_statemanager.stores.base import Store

Send = Callable[[JobRecord, str, str], bool]
"""Publishes a callback: the job, the latch's name and the signature as JSON text. False leaves it to others."""


def publish_due(store: Store, ref: JobRef, latches: Iterable[str], send: Send) -> int:
    """Publish the callbacks of latches that have fallen, each recorded before and marked after.

    A crash between sending and marking sends it again, under the same task id. Whoever decided a latch publishes its
    callback alone: one that fell elsewhere may be on its way from there, and is the sweep's if it stays due.

    Returns: how many were published. Raises: what ``send`` raises; the callback then stays due. JobNotFound.
    """
    job, published = current(store, ref), 0
    for name in latches:
        latch = job.latches[name]
        if latch.due and latch.callback is not None and send(job, name, latch.callback):
            _mark_published(store, ref, name)
            published += 1
    return published


def _mark_published(store: Store, ref: JobRef, name: str) -> None:
    while True:
        job = current(store, ref)
        latch = job.latches[name]
        if not latch.due:
            return
        marked = job.with_latches(**{name: replace(latch, published_at=store.now())})
        if store.update_job(marked) is not None:
            return


def cancel(store: Store, ref: JobRef, reason: str | None) -> bool:
    """Cancel a job by one compare-and-set; False when it has settled or was cancelled before. Raises: JobNotFound."""
    while True:
        job = current(store, ref)
        if job.settled or job.cancelled:
            return False
        if store.update_job(replace(job, cancelled=Cancellation(reason, store.now()))) is not None:
            return True
