"""The link from a message to its cell: one header of ours, and a Celery task id that we choose."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from celery.canvas import Signature

from celery_statemanager.codec import compact
from celery_statemanager.integration.stalling import StallOptions
from celery_statemanager.limits import short_repr
from celery_statemanager.models import Scope
from celery_statemanager.records import CALLBACK_ROW, Delivery, JobKey, JobRef

logger = logging.getLogger(__name__)

HEADER = "statemanager"
"""The header key that carries a binding, as JSON text."""

PART_HEADER = "statemanager_part"
"""The header key that marks a task of a replacement that does not end the cell itself. The value is the binding of the
task that does."""

IMMUTABLE = ""
"""``Binding.next`` if the next stage takes no value of this one."""

RESULT = "="
"""``Binding.next`` of a last stage whose value is the result of its row, which the job keeps."""

TAG_HEADER = "statemanager_tag"
"""The header key with which ``StateManager.tag`` marks a signature until it is submitted."""


@dataclass(frozen=True, slots=True)
class Binding:
    """One cell of one incarnation of a job, as it travels in a message.

    Attributes:
        task_index: the row; ``CALLBACK_ROW`` for a job's callback, whose tag is then its latch.
        stage: the position in the member's chain.
        replacements: how often the task of the cell has replaced itself. It travels here, because messages of Celery's
            protocol 1 have no place for it.
        publication: how often the message of the cell has gone back to the outbox.
        next: what takes the value: the serializer of the next stage, ``IMMUTABLE`` if that takes no value, ``RESULT``
            if this is the last stage and the row keeps its result, otherwise None.
        changed: whether the message differs from the stored one of the stage, and is therefore kept with the cell.
        generation: the generation of the job in which the row was last reset; 1 if never.
        stall: the options of the job about stalled tasks; None if it has none.
    """

    ref: JobRef
    task_index: int
    tag: str
    stage: int = 0
    replacements: int = 0
    publication: int = 0
    next: str | None = None
    changed: bool = False
    generation: int = 1
    stall: StallOptions | None = None

    @property
    def is_callback(self) -> bool:
        """Return whether it is a job's callback rather than a cell of the grid."""
        return self.task_index == CALLBACK_ROW

    @property
    def scope(self) -> Scope:
        """The scope of the cell, for reads."""
        return Scope(self.tag, self.task_index)

    @property
    def log_extra(self) -> dict[str, Any]:
        """The fields that every log line about it carries."""
        return {"job_id": self.ref.key.job_id, "task_index": self.task_index, "tag": self.tag}

    @property
    def celery_task_id(self) -> str:
        """The Celery task id of every message for this cell in one generation: short ASCII, whatever the names.

        Each generation has new ids, because workers remember those that were revoked, have expired or have finished.
        """
        prefix = self.ref.incarnation if self.generation == 1 else f"{self.ref.incarnation}-{self.generation}"
        return f"{prefix}.{self.tag}" if self.is_callback else f"{prefix}.{self.task_index}.{self.stage}"

    def to_header(self) -> str:
        """Return the header value."""
        place = [self.task_index, self.tag, self.stage, self.replacements, self.publication]
        options = [self.next, self.changed, self.generation, self.stall]
        return compact([*self.ref.key, self.ref.incarnation, *place, *options])

    @classmethod
    def from_header(cls, value: str) -> Binding:
        """Parse a header value, also one that lacks the last elements, as those of earlier releases do.

        Raises: TypeError, ValueError.
        """
        job_id, run_token, incarnation, task_index, tag, stage, *options = json.loads(value)
        if not all(type(each) is str for each in (job_id, incarnation, tag)):
            raise TypeError("a name has another type")
        found = cls(_ref(job_id, run_token, incarnation), task_index, tag, stage, *options)
        numbers = task_index, stage, found.replacements, found.publication, found.generation
        if not all(type(each) is int for each in numbers):
            raise TypeError("a number has another type")
        if found.stall is None:
            return found
        after, on_stall = found.stall
        return replace(found, stall=(after, on_stall))

    def delivery(self, request: Any) -> Delivery:
        """Return the place of a request, or of the headers of a message, among the deliveries of the cell."""
        return Delivery(self.publication, self.replacements, request.get("retries") or 0)

    def bind(self, signature: Signature[Any]) -> Signature[Any]:
        """Bind a task signature to this cell, in place, and return it."""
        headers = {**(signature.options.get("headers") or {}), HEADER: self.to_header()}
        headers.pop(TAG_HEADER, None)
        signature.options.update(headers=headers, task_id=self.celery_task_id)
        return signature


@lru_cache(maxsize=1_000)
def _ref(job_id: str, run_token: str | None, incarnation: str) -> JobRef:
    """Return one reference for all messages of a job: a worker may hold thousands."""
    return JobRef(JobKey(job_id, run_token), incarnation)


def binding_of(request: Any) -> Binding | None:
    """Return the binding in a task request or in the headers of a message; None when it is untracked.

    A header of another program must not fail the task. It is ignored and logged once.
    """
    return _find(request, HEADER)


def part_of(request: Any) -> Binding | None:
    """Return the binding that waits for the task of a request or message; None if it is not part of a replacement."""
    return _find(request, PART_HEADER)


def _find(request: Any, key: str) -> Binding | None:
    value = request.get(key)
    if value is None:
        headers = request.get("headers")
        value = headers.get(key) if isinstance(headers, dict) else None  # an isinstance check of Mapping is slow
    if value is None:
        return None
    try:
        return Binding.from_header(value)
    except (TypeError, ValueError, RecursionError):
        _warn_unreadable(key, short_repr(value))
        return None


@lru_cache(maxsize=100)
def _warn_unreadable(key: str, header: str) -> None:
    logger.error("cannot read the header %r of a message (%s): its task is not tracked", key, header)
