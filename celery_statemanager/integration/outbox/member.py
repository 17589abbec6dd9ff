"""The members of a submitted job, read from its stored messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from celery import Celery

from celery_statemanager.indexset import IndexSet
from celery_statemanager.integration.outbox.blocks import BlockCache
from celery_statemanager.integration.outbox.envelope import Envelope, content_of
from celery_statemanager.integration.outbox.making import REJECTED, binding_in
from celery_statemanager.integration.outbox.values import is_placeholder
from celery_statemanager.limits import check_index, short_repr
from celery_statemanager.records import JobRecord
from celery_statemanager.stores.capabilities import Outbox


class Stage(NamedTuple):
    """One task of a member. A later stage also gets the result of the previous stage, unless it is immutable."""

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


def read_members(
    app: Celery, blocks: BlockCache, store: Outbox, record: JobRecord, rows: str | Iterable[int] | None
) -> Iterator[Member]:
    """Return the members of some rows in row order, read one by one; see ``Job.members``."""
    wanted = IndexSet(range(record.num_tasks)) if rows is None else checked_rows(rows, record.num_tasks)
    if record.flow is None:
        raise ValueError(f"job {record.job_id!r} has no stored members: {why_not_stored(record)}")
    return (Member(row, tuple(_stages(app, blocks.messages(store, record.ref, row)))) for row in wanted)


def why_not_stored(record: JobRecord) -> str:
    """Return why no messages of a job are stored, and what to do."""
    earlier = record.schema < 2  # whose release stored no messages
    others = "it ran in eager mode, or was created by a Manager or an earlier release"
    reason = "it was created by an earlier release, which stored none, or by another program" if earlier else others
    return f"{reason}; submit its tasks again under a new run_token"


def checked_rows(rows: str | Iterable[int], num_tasks: int) -> IndexSet:
    """Return rows that a caller names, for example ``"3,17-20"``. Raises: TypeError, ValueError."""
    try:
        found = IndexSet.parse(rows) if isinstance(rows, str) else IndexSet(check_index(row, num_tasks) for row in rows)
    except ValueError as error:
        if not isinstance(rows, str):
            raise
        raise ValueError(
            f'rows must be row numbers in ascending order, such as "3,17-20", not {short_repr(rows)}'
        ) from error
    if found:
        check_index(found.ranges[-1][1], num_tasks)
    return found


def _stages(app: Celery, messages: Iterable[Envelope]) -> Iterator[Stage]:
    for message in messages:
        tag = binding_in(message).tag
        if REJECTED in message:
            yield Stage(message["task"], (), {}, tag)
        else:
            args, kwargs = _arguments(content_of(app, message))
            yield Stage(message["task"], tuple(each for each in args if not is_placeholder(each)), kwargs, tag)


def _arguments(content: Any) -> tuple[Iterable[Any], Mapping[str, Any]]:
    """Return the arguments in a decoded body, in either of Celery's protocols."""
    return (content["args"], content["kwargs"]) if isinstance(content, Mapping) else (content[0], content[1])
