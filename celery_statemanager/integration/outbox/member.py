"""The members of a submitted job, read from its stored messages."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from celery import Celery
from kombu.serialization import loads, prepare_accept_content

from celery_statemanager.indexset import IndexSet
from celery_statemanager.integration.binding import binding_of
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.integration.outbox.envelope import Envelope
from celery_statemanager.limits import check_index
from celery_statemanager.records import JobRecord


class Stage(NamedTuple):
    """One task of a member. A later stage also gets the result of the stage before, unless it is immutable."""

    task: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    tag: str


@dataclass(frozen=True, slots=True)
class Member:
    """One row of a job as it was submitted.

    Attributes:
        stages: its tasks, in the order in which they run.
    """

    task_index: int
    stages: tuple[Stage, ...]


def read_members(tracker: Tracker, record: JobRecord, rows: str | Iterable[int] | None) -> Iterator[Member]:
    """Return the members of some rows in row order, read one by one; see ``Job.members``."""
    wanted = _checked(rows, record.num_tasks)
    if record.flow is None:
        raise ValueError(
            f"job {record.job_id!r} has no stored members: it ran in eager mode, or was created by a Manager or an "
            "earlier release"
        )
    store, ref = tracker.store, record.ref
    return (_member(tracker.app, record, row, tracker.blocks.message(store, ref, row)) for row in wanted)


def _checked(rows: str | Iterable[int] | None, num_tasks: int) -> IndexSet:
    if rows is None:
        return IndexSet(range(num_tasks))
    found = IndexSet.parse(rows) if isinstance(rows, str) else IndexSet(check_index(row, num_tasks) for row in rows)
    if found:
        check_index(found.ranges[-1][1], num_tasks)
    return found


def _member(app: Celery, record: JobRecord, row: int, message: Envelope) -> Member:
    tags = record.plan.stages(row) if record.plan else ()
    if "publish" not in message:  # its task class made no message
        return Member(row, (Stage(message["task"], (), {}, tags[0]),))
    args, kwargs, later = _content(app, message)
    first = binding_of(message["publish"]["headers"])
    stages = [Stage(message["task"], tuple(args), kwargs, first.tag if first else tags[0])]
    for number, signature in enumerate(later, 1):
        binding = binding_of(signature["options"])
        tag = binding.tag if binding else tags[number]
        stages.append(Stage(signature["task"], tuple(signature["args"]), signature["kwargs"], tag))
    return Member(row, tuple(stages))


def _content(app: Celery, message: Envelope) -> tuple[Iterable[Any], Mapping[str, Any], Iterable[Mapping[str, Any]]]:
    """Return the arguments of the first stage, and the signatures of the later ones. Raises: ContentDisallowed."""
    text, given = message["body"], message["publish"]
    body = base64.b64decode(text) if "base64" in message else text
    accept = prepare_accept_content(app.conf.accept_content)
    content = loads(body, given["content_type"], given["content_encoding"], accept=accept)
    if isinstance(content, Mapping):  # protocol 1, in which later stages are links
        return content["args"], content["kwargs"], _linked(content["callbacks"])
    args, kwargs, embed = content
    return args, kwargs, reversed(embed["chain"] or ())


def _linked(callbacks: Iterable[Mapping[str, Any]] | None) -> Iterator[Mapping[str, Any]]:
    """Yield the links that are later stages: those with a binding."""
    for each in callbacks or ():
        if binding_of(each["options"]):
            yield each
            yield from _linked(each["options"].get("link"))
