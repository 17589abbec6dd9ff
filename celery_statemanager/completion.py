"""Effects on a whole job: its callbacks (rule R15), its cancellation (rules R17, R23), its pauses (rule R19)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

from celery_statemanager.records import (
    ERRBACKS,
    Begin,
    BeginReply,
    Cancellation,
    Cell,
    JobRecord,
    JobRef,
    Latch,
    Place,
    Verdict,
    of_generation,
    split_latch,
    to_datetime,
)
from celery_statemanager.retention import CHANGE_TIMEOUT, change_job, current
from celery_statemanager.stores.base import Store

Send = Callable[[JobRecord, str, str], Place | bool]
"""Publish a callback, given the job, the name of the latch and the signature as JSON text.

Return where its message waits, or True if that is unknown; False to leave the callback due.
"""


def publish_due(
    store: Store, ref: JobRef, latches: Iterable[str], send: Send, *, timeout: float = CHANGE_TIMEOUT
) -> int:
    """Publish the due callbacks of latches and mark each as published afterwards.

    After a crash between the two steps, the callback is published again with the same task id. Pass only the latches
    that the caller decided: the process that decided another latch may be publishing its callback. The sweep publishes
    every callback that stays due.

    Returns: the number of published callbacks.

    Raises: JobNotFound; StoreContended; any error of ``send``, in which case the callback stays due.
    """
    job, published = current(store, ref), 0
    for name in _with_errbacks(job, latches):
        latch = job.latches[name]
        sent = latch.due and latch.callback is not None and send(job, name, latch.callback)
        if sent:
            place = sent if isinstance(sent, Place) else None
            mark = partial(_published, job.callback_tag(name), place, store.now())  # a rerun renames the latches
            change_job(store, ref, mark, timeout=timeout)
            published += 1
    return published


def _with_errbacks(job: JobRecord, latches: Iterable[str]) -> Iterator[str]:
    """Yield the names of latches, and that of the errbacks after the failure with which they are decided."""
    for name in latches:
        yield name
        if name == "failure" and ERRBACKS in job.latches:
            yield ERRBACKS


def _published(tag: str, place: Place | None, now: int, job: JobRecord) -> JobRecord | None:
    name = job.latch_of(tag)
    latch = job.latches[name]
    place = place or (Place("") if latch.is_body else None)
    return job.with_latches(**{name: replace(latch, published_at=now, place=place)}) if latch.due else None


def record_end(store: Store, ref: JobRef, tag: str, cell: Cell, *, calls_errbacks: bool = False) -> tuple[str, ...]:
    """Record that the callback that runs in the cell with a tag has ended, and decide what follows a stage of a body.

    Its message cannot be lost any more. It may have ended before the process that published it has marked it as
    published.

    Args:
        cell: its cell, which is final.
        calls_errbacks: whether the errbacks of a stage that has not succeeded are due: it ended without Celery, which
            calls them otherwise.

    Returns: the names of the latches that this decided. Raises: JobNotFound, StoreContended.
    """
    found: tuple[str, ...] = ()

    def ended(job: JobRecord) -> JobRecord | None:
        nonlocal found
        found, changed, now = (), {}, store.now()
        name = job.latch_of(tag)
        latch = job.latches.get(name, Latch())
        if latch.due or latch.place is not None:
            published_at = now if latch.published_at is None else latch.published_at
            changed[name] = replace(latch, published_at=published_at, place=None)
        following = _after(job, name, cell, calls_errbacks=calls_errbacks) if latch.is_body else None
        if following is not None and following in job.latches and job.latches[following].decided_at is None:
            changed[following] = replace(job.latches[following], decided_at=now)
            found = (following,)
        return job.with_latches(**changed) if changed else None

    change_job(store, ref, ended)
    return found


def _after(job: JobRecord, name: str, cell: Cell, *, calls_errbacks: bool) -> str | None:
    """Return the name of the latch that the end of a stage of a body decides."""
    _, generation = split_latch(name)
    if not cell.succeeded:
        return of_generation(ERRBACKS, generation) if calls_errbacks else None
    stages = job.body(generation)
    return next(iter(stages[stages.index(name) + 1 :]), None)


def pause(store: Store, ref: JobRef, reason: str | None, *, timeout: float = CHANGE_TIMEOUT) -> bool:
    """Hold back the rows of a job that have not begun.

    Returns: False if the job has no messages, has settled, was cancelled, or is paused.
    Raises: JobNotFound, StoreContended.
    """

    def paused(job: JobRecord) -> JobRecord | None:
        if job.flow is None or job.flow.paused or job.settled or job.cancelled:
            return None
        return replace(job, flow=replace(job.flow, paused=True, pause_reason=reason))

    return change_job(store, ref, paused, timeout=timeout) is not None


def resume(store: Store, ref: JobRef, *, timeout: float = CHANGE_TIMEOUT) -> bool:
    """End the pause of a job. A publisher must then publish what is due.

    Returns: False if the job is not paused. Raises: JobNotFound, StoreContended.
    """

    def resumed(job: JobRecord) -> JobRecord | None:
        if job.flow is None or not job.flow.paused:
            return None
        return replace(job, flow=replace(job.flow, paused=False, pause_reason=None))

    return change_job(store, ref, resumed, timeout=timeout) is not None


def make_due(store: Store, ref: JobRef, tag: str) -> None:
    """Make the published callback that runs in the cell with a tag due again. Raises: JobNotFound, StoreContended."""

    def unpublished(job: JobRecord) -> JobRecord | None:
        name = job.latch_of(tag)
        latch = job.latches.get(name, Latch())
        due = replace(latch, published_at=None, place=None)
        return None if latch.published_at is None else job.with_latches(**{name: due})

    change_job(store, ref, unpublished)


def expire(store: Store, ref: JobRef) -> tuple[str, ...]:
    """Cancel a job if its deadline has passed. Return the latches that this decided.

    Raises: JobNotFound, StoreContended.
    """

    def expired(job: JobRecord) -> JobRecord | None:
        now = store.now()
        if not job.has_expired(now):
            return None
        moment = to_datetime(job.policy.deadline or 0)
        return replace(job, cancelled=Cancellation(f"its deadline of {moment:%Y-%m-%d %H:%M:%S} UTC passed", now))

    return change_job(store, ref, expired) or ()


def begin(store: Store, ref: JobRef, request: Begin) -> BeginReply:
    """Begin an attempt as ``Store.begin``; if the deadline of the job has passed, cancel the job."""
    reply = store.begin(ref, request)
    if reply.verdict is not Verdict.EXPIRED:
        return reply
    return BeginReply(Verdict.CANCELLED, reply.cell, expire(store, ref))


def cancel(store: Store, ref: JobRef, reason: str | None, *, timeout: float = CHANGE_TIMEOUT) -> bool:
    """Cancel a job by compare-and-set.

    Returns: False if the job has settled or is already cancelled. Raises: JobNotFound, StoreContended.
    """

    def cancelled(job: JobRecord) -> JobRecord | None:
        if job.settled or job.cancelled:
            return None
        return replace(job, cancelled=Cancellation(reason, store.now()))

    return change_job(store, ref, cancelled, timeout=timeout) is not None
