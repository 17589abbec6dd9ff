"""Canvases taken apart: what a group or chain says of its tasks goes to those that Celery would tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from celery import Celery
from celery.canvas import Signature, group

_OF_ITS_OWN = frozenset({"task_id", "group_id"})
"""Options of a group that name the group."""


def as_signature(app: Celery, value: Any) -> Any:
    """Give a signature that came as JSON as what it was; anything else as it is."""
    if isinstance(value, Mapping) and not isinstance(value, Signature) and "task" in value:
        return Signature.from_dict(dict(value), app=app)
    return value


def members_of(made: group) -> Iterable[Any]:
    """Give the members of a group, each with the group's options."""
    options = {name: value for name, value in made.options.items() if name not in _OF_ITS_OWN}
    return [with_options(each, options) for each in made.tasks] if options else made.tasks


def parts_of(member: Any) -> Iterator[Any]:
    """Give what a chain, of chains perhaps, is made of, in order; anything else is one part.

    A chain's errbacks are every task's, its links are the last one's, and its other options the first one's.
    """
    if not isinstance(member, Signature) or member.subtask_type != "chain":
        yield member
        return
    made: Any = member
    linked = {"link", "link_error"} & made.options.keys()
    tasks = made.unchain_tasks() if linked else made.tasks
    first = {name: value for name, value in made.options.items() if name not in linked}
    for part in (part for task in tasks for part in parts_of(task)):
        yield with_options(part, first) if first else part
        first = {}


def with_options(signature: Any, options: Mapping[str, Any]) -> Any:
    """Give a copy of a signature with further options; headers are added to those it has."""
    if not isinstance(signature, Signature):
        return signature
    headers = {**(signature.options.get("headers") or {}), **(options.get("headers") or {})}
    return signature.clone().set(**{**options, "headers": headers} if headers else options)
