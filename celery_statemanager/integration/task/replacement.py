"""Bind the task that ends a replacement to the cell of the replaced task, and end that cell if another one fails."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from celery import Task

from celery_statemanager.integration.binding import HEADER, binding_of, delivery_of
from celery_statemanager.integration.callbacks import publish_decided
from celery_statemanager.integration.installed import tracker_of
from celery_statemanager.integration.task.run import Run
from celery_statemanager.leases import cell_name
from celery_statemanager.limits import sanitize
from celery_statemanager.records import Begin, Write


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


def following(chain: Sequence[Any] | None = None, chord: Any = None, **_: Any) -> Iterator[dict[str, Any]]:
    """Yield the tasks whose signatures the message of a task contains, the next one first.

    Args:
        chain: the next tasks of its chain, the last one first.
        chord: the body of its chord.
    """
    for node in (*reversed(chain or ()), chord):
        if node is not None:
            yield from leaves(node)
            if node["options"].get("chord"):
                yield from leaves(node["options"]["chord"])


def bind_replacement(run: Run, tasks: Iterable[dict[str, Any]]) -> bool:
    """Bind the task that gets the id of a replaced task to its cell; return whether it is among ``tasks``."""
    found = False
    for options in (each["options"] for each in tasks):
        if options.get("task_id") == run.binding.celery_task_id:
            headers = {**(options.get("headers") or {}), HEADER: run.binding.to_header()}
            options.update(headers=headers, replaced_task_nesting=run.delivery.replacements + 1)
            found = True
    return found


def fail_replaced(task: Task[Any, Any], status: int, message: str) -> bool:
    """End the cell that waits for a later task of the same replacement, which never runs because ``task`` has failed.

    Celery reports nothing about that task. Any number of tasks of a group may fail; the first one ends the cell.

    Returns: whether ``task`` belongs to the replacement of a tracked task.
    """
    tracker, request = tracker_of(task.app), task.request
    tasks = following(request.chain, request.chord)
    bound = next((each["options"] for each in tasks if binding_of(each["options"])), None)
    binding = None if bound is None else binding_of(bound)
    if tracker is None or binding is None:
        return False
    delivery, place = delivery_of(bound), (binding.tag, binding.task_index)
    ending = Write.ending(*place, status, sanitize(message))
    # the replaced attempt may still be open
    ending.begin = Begin(tag=binding.tag, task_index=binding.task_index, delivery=delivery)
    ending.event_id = f"{binding.celery_task_id}.{delivery.replacements}.cut-off"

    def write() -> None:
        reply = tracker.store.write(binding.ref, ending)
        publish_decided(tracker, binding.ref, reply.decided)

    tracker.backlog.put((cell_name(binding.ref, *place), "outcome"), write, binding.log_extra)
    return True
