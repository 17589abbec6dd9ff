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
from celery_statemanager.integration import publication
from celery_statemanager.integration.binding import Binding
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.integration.outbox.capture import Capture
from celery_statemanager.integration.outbox.due import Unpublishable, delivered_message, numbered
from celery_statemanager.integration.outbox.envelope import publish
from celery_statemanager.integration.outbox.places import place_of
from celery_statemanager.integration.revokes import revoke
from celery_statemanager.records import CALLBACK_ROW, Cell, JobRecord, JobRef, Latch, Place, Write, split_latch
from celery_statemanager.retention import current

logger = logging.getLogger(__name__)


def callback_to_json(name: str, signature: Any) -> str | None:
    """Return a callback as the JSON text that is kept with the job. Raises: TypeError, ValueError."""
    if signature is None:
        return None
    if not isinstance(signature, Signature) or signature.subtask_type is not None or signature.task == "celery.chunks":
        raise TypeError(f"on_{name} must be one task signature such as publish.s(), not {signature!r:.80}")
    if "task_id" in signature.options:
        raise ValueError(f"on_{name} must not have a task_id: leave it out, the job assigns the ids")
    try:
        return str(dumps(dict(signature)))
    except (TypeError, ValueError) as error:
        raise TypeError(f"on_{name} cannot be stored as JSON: {error}") from error


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
        signature = Signature.from_dict(loads(text), app=tracker.app)
        if not may_send(str(signature.task)):
            return False
        tag = job.callback_tag(name)
        cell = tracker.store.get_cell(job.ref, tag, CALLBACK_ROW) or Cell()
        place = _send(tracker, Binding(job.ref, CALLBACK_ROW, tag), cell, signature)
        tracker.metrics.published(split_latch(name)[0])
        return place or True

    try:
        if "failure" in decided and current(tracker.store, ref).is_stopped:
            revoke(tracker, ref)
        return publish_due(tracker.store, ref, decided, send)
    except Exception:
        text = "cannot publish the callbacks of job %r, the next sweep will retry"
        logger.exception(text, ref.key.job_id, extra={"job_id": ref.key.job_id})
        return 0


def note_end(tracker: Tracker, ref: JobRef, request: Write, cell: Cell) -> None:
    """Record the end of a callback if a write has ended it. If that fails, a sweep that looks for its message does so.

    Args:
        cell: the cell after the write.
    """
    if request.task_index == CALLBACK_ROW and cell.final:
        with suppress(JobNotFound, StoreError):
            record_end(tracker.store, ref, request.tag)


def _send(tracker: Tracker, binding: Binding, cell: Cell, signature: Signature[Any]) -> Place | None:
    """Make and publish the message of a callback; end its cell if its task class makes none.

    Returns: where the message waits; None if that is unknown, or if there is none.
    """
    app, task = tracker.app, str(signature.task)
    bound: Any = binding.bind(signature)
    apply = partial(bound.apply_async, args=(binding.ref.key.job_id,))
    if app.conf.task_always_eager:
        apply()
        return None
    with Capture(app) as capture:
        made = capture.make(binding, lambda producer: apply(producer=producer), signature.options)
    if made is None:
        if publication.may_hold_back(app, task):
            _reject(tracker, binding, publication.not_published(app, task))
        return None
    try:
        message = numbered(app, delivered_message(made, cell), cell)
    except Unpublishable as error:
        _reject(tracker, binding, str(error))
        return None
    publish(app, message)
    return place_of(app, message, tracker.store.now())


def _reject(tracker: Tracker, binding: Binding, text: str) -> None:
    publication.reject(tracker, binding, text, partial(publish_decided, tracker, binding.ref))
