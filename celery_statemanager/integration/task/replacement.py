"""Pass the cell of a replaced task on to its replacement: one task ends the cell, and the others can fail it.

The task that gets the id of the replaced task is bound to its cell. All other tasks of the replacement are its parts.
Without them it never runs, and Celery does not report that. Therefore a part that ends without a result ends the cell.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from celery import Task
from celery.exceptions import Reject
from celery.utils.functional import maybe_list

from celery_statemanager.errors import AttemptSuperseded, BeginRefused, JobCancelled, JobNotFound
from celery_statemanager.integration import pools
from celery_statemanager.integration.binding import HEADER, PART_HEADER, Binding, part_of
from celery_statemanager.integration.installed import Tracker, tracker_of
from celery_statemanager.integration.outbox import publisher
from celery_statemanager.integration.task import outcomes
from celery_statemanager.integration.task.run import Run, run_of
from celery_statemanager.leases import cell_name
from celery_statemanager.limits import sanitize
from celery_statemanager.models import Status
from celery_statemanager.records import Delivery, Write

logger = logging.getLogger(__name__)

_ATTRIBUTE = "_statemanager_part"

OF_A_PART = " (in a task of its replacement)"
"""The end of the state message for an outcome of a part that is not an exception."""


class Part:
    """The execution of a part, stored on its task request. It writes no states.

    Attributes:
        binding: that of the task that waits for it.
        replaced_by: the name of the task that replaces it under its id.
    """

    def __init__(self, tracker: Tracker, binding: Binding) -> None:
        self.tracker = tracker
        self.binding = binding
        self.replaced_by: str | None = None

    def end(self, status: int, message: str) -> None:
        """End the cell, which would wait forever; queue the write while the store is unavailable."""
        self.tracker.backlog.now_or_later(*part_ending(self.tracker, self.binding, status, message))


def start_part(task: Task[Any, Any]) -> bool:
    """Record that the current execution is a part; return whether it is one."""
    binding, tracker = part_of(task.request), tracker_of(task.app)
    if binding is None or tracker is None:
        return False
    setattr(task.request, _ATTRIBUTE, Part(tracker, binding))
    return True


def running_part(task: Any) -> Part | None:
    """Return the current execution of a task as a part; None if it is none, or where the request may be another's."""
    request = task.request if task and pools.current().known else None
    return None if request is None else request.__dict__.get(_ATTRIBUTE)


def end_part(task: Task[Any, Any], state: str | None, retval: Any) -> None:
    """End the cell of a replacement if the current execution is a part of it and has ended without a result.

    Args:
        state: Celery's name of the outcome; ``retval`` is what the body returned or raised.
    """
    part = running_part(task)
    if part is None:
        return
    if state == "IGNORED" and part.replaced_by is None:
        part.end(int(Status.REJECTED), outcomes.ignored(retval) + OF_A_PART)
    elif state == "REJECTED" and isinstance(retval, Reject):
        requeue = outcomes.asks_for_requeue(retval)
        if not requeue or not task.acks_late or task.request.is_eager:
            part.end(int(Status.REJECTED), outcomes.rejection(retval, not_requeued=requeue) + OF_A_PART)
    elif state == "FAILURE":  # usually written by the handler of its signal, but a time limit may have prevented that
        part.end(*outcomes.failure(retval))


def part_ending(
    tracker: Tracker, binding: Binding, status: int, message: str
) -> tuple[tuple[str, str], Callable[[], None], Mapping[str, Any]]:
    """Return the arguments for a backlog of the write that ends the cell of a replacement."""
    place = binding.tag, binding.task_index
    ending = Write.cut_off(*place, status, sanitize(message), Delivery(binding.publication, binding.replacements))

    def write() -> None:
        try:
            publisher.write(tracker, binding.ref, ending)
        except (AttemptSuperseded, BeginRefused, JobCancelled, JobNotFound) as error:
            logger.info("state not written: %s", error, extra=binding.log_extra)

    return (cell_name(binding.ref, *place), "outcome"), write, binding.log_extra


def ends_in_group(node: Any) -> bool:
    """Return whether a canvas ends in several tasks, so that none of them can have the id of the replaced task."""
    kwargs, kind = node["kwargs"], node["subtask_type"]
    if kind == "chord":
        return kwargs["body"] is not None and ends_in_group(kwargs["body"])
    if kind == "chain":
        return bool(kwargs["tasks"]) and ends_in_group(kwargs["tasks"][-1])
    return bool(kind == "group")


def leaves(node: Any) -> Iterator[dict[str, Any]]:
    """Yield the task signatures of a frozen canvas as mappings, because some parts may be in their JSON form."""
    kwargs, kind = node["kwargs"], node["subtask_type"]
    if kind == "chord":
        header, body = kwargs["header"], kwargs["body"]
        inner = [header] if isinstance(header, Mapping) else [*header]
        inner += [] if body is None else [body]
    elif kind == "chain":  # freezing may turn a group and the next task into a chord, which is sent instead
        steps, _ = getattr(node, "_frozen", None) or ([], [])
        inner = [*kwargs["tasks"], *steps]
    elif kind == "group":
        inner = [*kwargs["tasks"]]
    else:
        yield node
        return
    for each in inner:
        yield from leaves(each)


def following(tasks: Sequence[Any] | None = None, chord: Any = None) -> Iterator[dict[str, Any]]:
    """Yield the tasks whose signatures the message of a task contains, the next one first.

    Args:
        tasks: the next tasks of its chain, the last one first.
        chord: the body of its chord.
    """
    for node in (*reversed(tasks or ()), chord):
        if node is not None:
            yield from leaves(node)
            if node["options"].get("chord"):
                yield from leaves(node["options"]["chord"])


def linked(callbacks: Any, task_id: str | None) -> Iterator[dict[str, Any]]:
    """Yield the tasks among links and their links that lead to the one with this id: a chain in Celery's protocol 1."""
    for node in maybe_list(callbacks) or ():
        later = [*linked(node["options"].get("link"), task_id)]
        own = [*following([node])]
        if later or any(each["options"].get("task_id") == task_id for each in own):
            yield from own
            yield from later


def pass_on(task: Task[Any, Any], name: str, tasks: Iterable[dict[str, Any]]) -> bool:
    """Mark the tasks of a replacement of the current execution, if the one that gets its id is among ``tasks``.

    Args:
        name: the name of the task that comes next.
    """
    holder = run_of(task) or running_part(task)
    options = [each["options"] for each in tasks]
    if holder is None or not any(each.get("task_id") == task.request.id for each in options):
        return False
    for each in options:
        own = each.get("headers") or {}
        if each.get("task_id") == task.request.id:
            each["headers"] = {**own, **_last(holder)}
        elif (
            HEADER not in own and PART_HEADER not in own
        ):  # a later stage of the row, or a part of an outer replacement
            each["headers"] = {**own, **_inner(holder)}
    holder.replaced_by = holder.replaced_by or name
    return True


def mark_message(task: Task[Any, Any], name: str, headers: dict[str, Any], body: Any) -> bool:
    """Mark a message without a mark that continues the current execution; return whether it does.

    It is a retry, a replacement, or the next task of a chain or chord, and Celery or a task class has dropped the mark.
    """
    holder, request = run_of(task) or running_part(task), task.request
    if holder is None:
        return False
    if isinstance(body, tuple):
        content, tasks = headers, following(body[2]["chain"], body[2]["chord"])
    else:  # protocol 1
        content, tasks = body, chain(linked(body["callbacks"], request.id), following(chord=body["chord"]))
    if content["id"] == request.id:
        if (content.get("retries") or 0) > (request.retries or 0):
            headers.update(_same(holder))
        else:
            headers.update(_last(holder))
            holder.replaced_by = name
        return True
    if pass_on(task, name, tasks):
        headers.update(_inner(holder))
        return True
    for options in (each["options"] for each in following(request.chain, request.chord)):
        if options.get("task_id") == content["id"]:
            own = options.get("headers") or {}
            headers.update({key: own[key] for key in (HEADER, PART_HEADER) if key in own})
            return True
    return False


def _same(holder: Run | Part) -> dict[str, str]:
    """Return the mark of a further delivery of an execution."""
    return {HEADER if isinstance(holder, Run) else PART_HEADER: holder.binding.to_header()}


def _last(holder: Run | Part) -> dict[str, str]:
    """Return the mark of the task that gets the id of a replaced execution."""
    return {HEADER: _next(holder).to_header()} if isinstance(holder, Run) else _same(holder)


def _inner(holder: Run | Part) -> dict[str, str]:
    """Return the mark of any other task of the replacement."""
    return {PART_HEADER: _next(holder).to_header()} if isinstance(holder, Run) else _same(holder)


def _next(run: Run) -> Binding:
    return replace(run.binding, replacements=run.binding.replacements + 1)
