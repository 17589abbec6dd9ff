"""The callbacks of a job: kept as JSON, published as tasks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from celery.canvas import Signature
from kombu.utils.json import dumps, loads

from celery_statemanager.completion import publish_due
from celery_statemanager.integration import publication
from celery_statemanager.integration.binding import Binding
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.integration.outbox.capture import Capture
from celery_statemanager.integration.outbox.envelope import publish
from celery_statemanager.records import CALLBACK_ROW, Cell, JobRecord, JobRef

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


def publish_decided(
    tracker: Tracker, ref: JobRef, decided: tuple[str, ...], may_send: Callable[[str], bool] = lambda _: True
) -> int:
    """Publish the callbacks of decided latches; a callback that cannot be published stays due for the sweep.

    Args:
        may_send: whether this app may send a message of the task of this name; else the callback stays due.

    Returns: the number of published callbacks.
    """
    if not decided:
        return 0

    def send(job: JobRecord, name: str, text: str) -> bool:
        signature = Signature.from_dict(loads(text), app=tracker.app)
        if not may_send(str(signature.task)):
            return False
        tag = job.callback_tag(name)
        cell = tracker.store.get_cell(job.ref, tag, CALLBACK_ROW) or Cell()
        _send(tracker, Binding(job.ref, CALLBACK_ROW, tag, publication=cell.delivery.publication), signature)
        tracker.metrics.published(name.partition(".")[0])
        return True

    try:
        return publish_due(tracker.store, ref, decided, send)
    except Exception:
        text = "cannot publish the callbacks of job %r, the next sweep will retry"
        logger.exception(text, ref.key.job_id, extra={"job_id": ref.key.job_id})
        return 0


def _send(tracker: Tracker, binding: Binding, signature: Signature[Any]) -> None:
    """Make and publish the message of a callback; end its cell if its task class makes none."""
    app, task = tracker.app, str(signature.task)
    bound: Any = binding.bind(signature)
    apply = partial(bound.apply_async, args=(binding.ref.key.job_id,))
    if app.conf.task_always_eager:
        apply()
        return
    with Capture(app) as capture:
        message = capture.make(binding, lambda producer: apply(producer=producer), signature.options)
    if message is not None:
        publish(app, message)
    elif publication.may_hold_back(app, task):
        text = publication.not_published(app, task)
        publication.reject(tracker, binding, text, partial(publish_decided, tracker, binding.ref))
