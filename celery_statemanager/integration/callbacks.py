"""The callbacks of a job: kept as JSON, published as tasks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from celery.canvas import Signature
from kombu.utils.json import dumps, loads

from celery_statemanager.completion import publish_due, record_end
from celery_statemanager.errors import JobNotFound, StoreError
from celery_statemanager.integration import body, publication
from celery_statemanager.integration.binding import RESULT, Binding
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.integration.outbox.capture import Capture
from celery_statemanager.integration.outbox.due import Unpublishable, delivered_message, numbered
from celery_statemanager.integration.outbox.envelope import publish
from celery_statemanager.integration.outbox.places import place_of
from celery_statemanager.integration.revokes import revoke
from celery_statemanager.models import Status
from celery_statemanager.records import (
    CALLBACK_ROW,
    ERRBACKS,
    Cell,
    JobRecord,
    JobRef,
    Latch,
    Place,
    Write,
    split_latch,
)
from celery_statemanager.retention import current

logger = logging.getLogger(__name__)


def callback_to_json(what: str, signature: Any) -> str:
    """Return a callback as the JSON text that is kept with the job. Raises: TypeError, ValueError."""
    if not isinstance(signature, Signature) or signature.subtask_type is not None or signature.task == "celery.chunks":
        raise TypeError(f"{what} must be one task signature such as publish.s(), not {signature!r:.80}")
    if "task_id" in signature.options:
        raise ValueError(f"{what} must not have a task_id: leave it out, the job assigns the ids")
    try:
        return str(dumps(dict(signature)))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{what} cannot be stored as JSON: {error}") from error


def callback_task(latch: Latch) -> str | None:
    """Return the name of the task of a callback; None if there is no callback."""
    return None if latch.callback is None else str(loads(latch.callback)["task"])


def publish_decided(
    tracker: Tracker, ref: JobRef, decided: tuple[str, ...], may_send: Callable[[str], bool] = lambda _: True
) -> int:
    """Publish the callbacks of decided latches; a callback that cannot be published stays due for the sweep.

    If too many rows have failed, first revoke the messages of the others.

    Args:
        may_send: whether this app may send a message of the task of this name; else the callback stays due.

    Returns: the number of published callbacks.
    """
    if not decided:
        return 0

    def send(job: JobRecord, name: str, text: str) -> Place | bool:
        is_errbacks = split_latch(name)[0] == ERRBACKS
        stored = (job.latches[job.body()[0]].callback or text) if is_errbacks else text
        signature = Signature.from_dict(loads(stored), app=tracker.app)
        if not may_send(str(signature.task)):
            return False
        sent: Place | bool = True
        if is_errbacks:
            body.call_errbacks(tracker, job, name)
        else:
            sent = _send_callback(tracker, job, name, signature)
        if sent:
            tracker.metrics.published(split_latch(name)[0].partition("-")[0])
        return sent

    try:
        if "failure" in decided and current(tracker.store, ref).is_stopped:
            revoke(tracker, ref)
        return publish_due(tracker.store, ref, decided, send)
    except Exception:
        text = "cannot publish the callbacks of job %r, the next sweep will retry"
        logger.exception(text, ref.key.job_id, extra={"job_id": ref.key.job_id})
        return 0


def note_end(
    tracker: Tracker, ref: JobRef, request: Write, cell: Cell, may_send: Callable[[str], bool] = lambda _: True
) -> None:
    """Record the end of a callback if a write has ended it, and publish what follows. If that fails, a sweep does so.

    Args:
        cell: the cell after the write.
        may_send: as in ``publish_decided``.
    """
    if request.task_index == CALLBACK_ROW and cell.final:
        with suppress(JobNotFound, StoreError):
            publish_decided(tracker, ref, record_end(tracker.store, ref, request.tag, cell), may_send)


def _send_callback(tracker: Tracker, job: JobRecord, name: str, signature: Signature[Any]) -> Place | bool:
    """Publish the message of a callback, or end its cell if there can be none.

    Returns: where the message waits, or True if that is unknown; False if the store cannot end the cell now.
    """
    tag, is_body = job.callback_tag(name), job.latches[name].is_body
    binding = Binding(job.ref, CALLBACK_ROW, tag, next=RESULT if is_body else None)
    try:
        takes = body.argument_of(tracker, job, name) if is_body and not signature.immutable else job.job_id
        cell = tracker.store.get_cell(job.ref, tag, CALLBACK_ROW) or Cell()
        return _send(tracker, binding, cell, signature, takes) or True
    except (body.CannotRun, Unpublishable) as error:
        publication.reject(tracker, binding, str(error), partial(publish_decided, tracker, binding.ref))
        if not is_body:
            return True
    rejected = tracker.store.get_cell(job.ref, tag, CALLBACK_ROW)
    if rejected is None or not rejected.final:
        return False
    by_us = rejected.status == Status.REJECTED
    publish_decided(tracker, job.ref, record_end(tracker.store, job.ref, tag, rejected, calls_errbacks=by_us))
    return True


def _send(tracker: Tracker, binding: Binding, cell: Cell, signature: Signature[Any], takes: Any) -> Place | None:
    """Make and publish the message of a callback.

    Args:
        takes: the first argument, unless the signature is immutable.

    Returns: where the message waits; None if that is unknown. Raises: Unpublishable, CannotRun; what the broker raises.
    """
    app, task = tracker.app, str(signature.task)
    bound: Any = binding.bind(signature)
    apply = partial(bound.apply_async, args=(takes,))
    if app.conf.task_always_eager:
        apply()
        return None
    with Capture(app) as capture:
        made = capture.make(binding, lambda producer: apply(producer=producer), signature.options)
    if made is None:
        if publication.may_hold_back(app, task):
            raise body.CannotRun(publication.not_published(app, task))
        return None
    message = numbered(app, delivered_message(made, cell), cell)
    publish(app, message)
    return place_of(app, message, tracker.store.now())
