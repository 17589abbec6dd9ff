"""Make the message of each stage of a row, by Celery but without sending it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

from celery import Celery
from celery.canvas import Signature
from celery.utils.saferepr import saferepr

from celery_statemanager.integration import publication
from celery_statemanager.integration.binding import HEADER, IMMUTABLE, RESULT, TAG_HEADER, Binding
from celery_statemanager.integration.outbox.capture import Capture
from celery_statemanager.integration.outbox.envelope import Envelope, serializer_of, to_json, with_headers
from celery_statemanager.integration.outbox.templates import Templates
from celery_statemanager.integration.outbox.values import PLACEHOLDER, takes_value
from celery_statemanager.integration.stalling import StallOptions
from celery_statemanager.records import EVERY_ROW, SOME_ROWS, JobRef

REJECTED = "rejected"
"""The key of an entry in a block, instead of a message, with the reason why there is none."""

BINDING = "binding"
"""The key, beside ``REJECTED``, of the header that the message would have had."""


class MessageMaker:
    """Makes the messages of one job that is being submitted.

    Attributes:
        kept: which rows keep their results; see ``JobRecord.results``.
    """

    def __init__(
        self, app: Celery, ref: JobRef, capture: Capture, *, results: bool = False, stall: StallOptions | None = None
    ) -> None:
        self.kept = EVERY_ROW if results else None
        self._app = app
        self._ref = ref
        self._stall = stall
        self._capture = capture
        self._templates = Templates(app, capture)

    def make(self, row: int, stages: Sequence[Signature[Any]], tags: Sequence[str]) -> str:
        """Return the messages of the stages of a row as a line of a block.

        Raises: what task classes and receivers raise; EncodeError; TypeError – a header cannot be stored as JSON.
        """
        bindings = bindings_of(
            self._app, self._ref, row, stages, tags, results=self.kept == EVERY_ROW, stall=self._stall
        )
        if bindings[-1].next == RESULT:
            self.kept = self.kept or SOME_ROWS
        text = self._templates.make(bindings[0], stages[0]) if len(stages) == 1 else None
        if text is not None:
            return f"[{text}]"
        messages = self._messages(bindings, stages)
        try:
            line = to_json(messages)
        except Exception as error:
            raise TypeError(f"a header of its message cannot be stored as JSON: {error}") from error
        if len(stages) == 1 and REJECTED not in messages[0]:
            self._templates.learn(bindings[0], stages[0], messages[0])
        return line

    def _messages(self, bindings: list[Binding], stages: Sequence[Signature[Any]]) -> list[Envelope]:
        """Let Celery make the message of each stage."""
        messages: list[Envelope] = []
        for binding, stage in zip(bindings, stages, strict=True):
            messages.append(self._message(binding, stage, _ids_of_chain(messages, bindings)))
        for number, following in enumerate(messages[1:]):
            is_immutable = bool(stages[number + 1].immutable)
            _add_next_serializer(messages, number, bindings[number], following, is_immutable=is_immutable)
        return messages

    def _message(self, binding: Binding, stage: Signature[Any], ids: dict[str, Any]) -> Envelope:
        """Let Celery make the message of a stage. This does what ``Signature.apply_async`` does, with fewer copies."""
        app, name, given = self._app, str(stage.task), stage.options
        task: Any = stage._type or app.tasks.get(name)  # type: ignore[attr-defined] # incomplete stubs
        apply: Any = partial(app.send_task, name) if task is None else task.apply_async
        is_later = bool(binding.stage)
        args = (PLACEHOLDER, *stage.args) if is_later and not stage.immutable else tuple(stage.args)
        headers = {**(given.get("headers") or {}), HEADER: binding.to_header()}
        headers.pop(TAG_HEADER, None)
        options = {**deepcopy(given), **ids, "headers": headers, "task_id": binding.celery_task_id}
        message = self._capture.make(
            binding,
            lambda producer: apply(args, {**stage.kwargs}, producer=producer, add_to_parent=False, **options),
            {"expires": getattr(task, "expires", None), **given},
        )
        if message is None:
            return {"task": name, REJECTED: publication.not_published(app, name), BINDING: binding.to_header()}
        shown = message["publish"]["headers"].get("argsrepr") if is_later else None
        return with_headers(message, argsrepr=shown.replace(saferepr(PLACEHOLDER), "...")) if shown else message


def bindings_of(
    app: Celery,
    ref: JobRef,
    row: int,
    stages: Sequence[Signature[Any]],
    tags: Sequence[str],
    *,
    results: bool,
    stall: StallOptions | None = None,
) -> list[Binding]:
    """Return the bindings of the stages of a row.

    Args:
        results: whether the row keeps its result, even if its last task does not ask for that.
        stall: the options of the job about stalled tasks.
    """
    bindings = [Binding(ref, row, tag, number, stall=stall) for number, tag in enumerate(tags)]
    if results or getattr(app.tasks.get(str(stages[-1].task)), "keep_result", False):
        bindings[-1] = replace(bindings[-1], next=RESULT)
    return bindings


def binding_in(message: Envelope) -> Binding:
    """Return the binding of a message, or of the entry that stands for it."""
    header: str = message[BINDING] if REJECTED in message else message["publish"]["headers"][HEADER]
    return Binding.from_header(header)


def _ids_of_chain(messages: list[Envelope], bindings: list[Binding]) -> dict[str, Any]:
    """Return the root id and the parent id of the next message, as Celery's chain sets them."""
    if not messages:
        return {}
    first = messages[0].get("publish", {}).get("headers", {})
    root = first.get("root_id") or bindings[0].celery_task_id
    return {"root_id": root, "parent_id": bindings[len(messages) - 1].celery_task_id}


def _add_next_serializer(
    messages: list[Envelope], number: int, binding: Binding, following: Envelope, *, is_immutable: bool
) -> None:
    """Add to the header of a stage in which form the next stage takes the value."""
    message = messages[number]
    if REJECTED in message:
        return
    takes = REJECTED not in following and takes_value(following, is_immutable=is_immutable)
    after = replace(binding, next=serializer_of(following) if takes else IMMUTABLE)
    messages[number] = with_headers(message, **{HEADER: after.to_header()})
