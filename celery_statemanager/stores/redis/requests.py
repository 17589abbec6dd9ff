"""The encoding of writes and begins as keys and arguments of scripts, and the decoding of replies. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery_statemanager.errors import AttemptSuperseded, BeginRefused, JobCancelled
from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import SCHEMA_VERSION
from celery_statemanager.records import Begin, BeginReply, JobRef, Reset, Verdict, When, Write, WriteReply, value_row
from celery_statemanager.stores.redis.cells import NO_PAYLOAD, PayloadParts, cell_of, progress_parts, split
from celery_statemanager.stores.redis.layout import JobLayout, RankedCell
from celery_statemanager.stores.redis.packing import pack_array

WRITE = (
    "tag",
    "row",
    "rank",
    "counts",
    "is_last",
    "event_id",
    "status",
    "message",
    "attempt",
    "ends_attempt",
    "keep_payload",
    "when",
    "keep_app_status",
    "block_later_stages",
    "later",
    "not_run",
    "progress",
    "share",
    "full",
    "publisher",
    "begin",
    "if_owner",
    "if_delivery",
    "counts_as_loss",
    "next_delivery",
    "delivery",
    "presumed_dead",
    "awaits_delivery",
    "kept",
    "next_is_due",
    "due_again",
    "is_later",
    "stalled_since",
    "if_version",
    "stands_in",
    "schema",
)
"""The fields of a request of write.lua, in order. Most are those of ``records.Write``; the others are:

- ``rank``, ``counts`` and ``is_last``, as in ``layout.RankedCell``
- ``when``: ``"open"``, ``"idle"`` or nothing
- ``later``: the ``RankedCell`` of each later stage of the row
- ``not_run``: the beginning of the message that a blocked stage gets
- ``progress`` as JSON, with its values ``share`` and, once done, ``full``, in units of ``1 / FRACTION_UNIT``
- ``begin``: a request as in ``BEGIN``
- ``if_owner`` and ``if_delivery``: the two parts of ``Write.if_owner``
- ``is_later``, with ``due_again``: whether the row has an earlier stage
"""

BEGIN = (
    "tag",
    "row",
    "rank",
    "counts",
    "is_last",
    "event_id",
    "message",
    "owner",
    "delivery",
    "kept",
    "takes_over",
    "supersedes",
    "uncounted",
    "later",
    "may_wait",
    "is_later",
    "stall_after",
    "schema",
)
"""The fields of a request of begin.lua, in order: those of ``records.Begin``, and others as in ``WRITE``.

``uncounted`` is set if the superseded attempt does not count as a loss. ``is_later`` is set with ``may_wait`` only.
"""

RESET = ("tag", "row", "rank", "counts", "is_last", "event_id", "generation", "later", "is_later", "schema")
"""The fields of a request of reset.lua, in order: those of ``records.Reset``, and others as in ``WRITE``."""

ScriptCall = tuple[tuple[str, ...], list[str | bytes]]
"""The keys and arguments of a script."""


def begin_call(layout: JobLayout, begin: Begin) -> ScriptCall:
    """Create the call that takes an attempt."""
    keys, cell, later = _cells(layout, begin.tag, begin.task_index, with_later=True, with_outbox=begin.may_wait)
    is_later = begin.may_wait and _is_later(layout, begin.tag, begin.task_index)
    return keys, [pack_array(_begin(begin, cell, later, may_wait=begin.may_wait, is_later=is_later))]


def write_call(layout: JobLayout, write: Write) -> ScriptCall:
    """Create the call that writes a cell."""
    with_later = write.block_later_stages or write.ends_attempt or write.begin is not None
    with_outbox = write.publisher is not None or write.due_again or write.value is not None
    keys, cell, later = _cells(layout, write.tag, write.task_index, with_later=with_later, with_outbox=with_outbox)
    payload = _payload(write)
    if_owner, if_delivery = write.if_owner or (None, None)
    request = (
        *cell,
        write.event_id,
        int(write.status),
        write.message,
        write.attempt,
        write.ends_attempt,
        write.keep_payload,
        None if write.when is When.ANY else write.when.value,
        write.keep_app_status,
        write.block_later_stages,
        later,
        f"not run: stage {write.tag!r} failed: " if write.block_later_stages else None,
        payload.progress,
        payload.share,
        payload.full,
        write.publisher,
        write.begin and _begin(write.begin, cell, later),
        if_owner,
        if_delivery,
        write.counts_as_loss,
        write.next_delivery,
        write.delivery,
        write.presumed_dead,
        write.awaits_delivery,
        write.kept or None,
        write.next_is_due,
        write.due_again,
        write.due_again and _is_later(layout, write.tag, write.task_index),
        write.stalled_since,
        write.if_version,
        write.stands_in,
        SCHEMA_VERSION,
    )
    value = () if write.value is None else (write.value, str(value_row(write.tag, write.task_index)))
    return keys, [pack_array(request), payload.rest or "", *value]


def reset_call(layout: JobLayout, reset: Reset) -> ScriptCall:
    """Create the call that resets a row."""
    keys, cell, later = _cells(layout, reset.tag, reset.task_index, with_later=True, with_outbox=True)
    is_later = _is_later(layout, reset.tag, reset.task_index)
    return keys, [pack_array((*cell, reset.event_id, reset.generation, later, is_later, SCHEMA_VERSION))]


def _payload(write: Write) -> PayloadParts:
    if not write.keep_payload:
        return split(write.payload)
    return NO_PAYLOAD if write.new_progress is None else progress_parts(write.new_progress)


def _begin(
    begin: Begin,
    cell: RankedCell,
    later: list[RankedCell] | None,
    *,
    may_wait: bool = False,
    is_later: bool = False,
) -> tuple[Any, ...]:
    return (
        *cell,
        begin.event_id,
        begin.message,
        begin.owner,
        begin.delivery,
        begin.kept,
        begin.takes_over,
        begin.supersedes,
        not begin.counts_as_loss,
        later,
        may_wait,
        is_later,
        begin.stall_after or None,
        SCHEMA_VERSION,
    )


def _cells(
    layout: JobLayout, tag: str, row: int, *, with_later: bool, with_outbox: bool
) -> tuple[tuple[str, ...], RankedCell, list[RankedCell] | None]:
    """Return the keys of a step on a cell, the cell, and the row's later stages if the step needs them."""
    plan = layout.job.plan
    later = plan.after(tag, row) if plan and with_later else ()
    keys = layout.step_keys((tag, *later), of_callback=row < 0, with_outbox=with_outbox)
    return keys, layout.ranked_cell(tag, row), [layout.ranked_cell(each, row) for each in later] or None


def _is_later(layout: JobLayout, tag: str, row: int) -> bool:
    return layout.job.plan is not None and bool(layout.job.plan.before(tag, row))


def write_reply(ref: JobRef, write: Write, reply: Any) -> WriteReply:
    """Decode a reply of ``write.lua``. Raises: AttemptSuperseded, BeginRefused, JobCancelled."""
    if isinstance(reply, bytes):
        return WriteReply(cell_of(reply))
    status, *values = reply
    if status in (b"written", b"same"):
        return WriteReply(cell_of(values[0]), texts(values[1:]), status == b"written")
    if status == b"claimed before":
        rows = rows_of(values[1])
        return WriteReply(cell_of(values[0]), (), changed=False, claimed=rows, again=rows)
    if status == b"claimed":
        packed, bounds, again, *names = values
        return WriteReply(cell_of(packed), texts(names), claimed=rows_of(bounds), again=rows_of(bounds[:again]))
    if status == b"superseded":
        raise AttemptSuperseded(ref.key.job_id, write.tag, write.task_index, write.attempt, values[0])
    if status == b"cancelled":
        raise JobCancelled(ref.key.job_id, values[0] and values[0].decode())
    raise BeginRefused(ref.key.job_id, write.tag, write.task_index, values[0].decode())


def begin_reply(reply: Any) -> BeginReply:
    """Decode a reply of ``begin.lua``."""
    if isinstance(reply, bytes):
        return BeginReply(Verdict.BEGUN, cell_of(reply))
    verdict, packed, *names = reply
    return BeginReply(Verdict(verdict.decode()), cell_of(packed), texts(names))


def rows_of(bounds: Sequence[int]) -> IndexSet:
    """Create a set from the first and last rows of ranges that are in any order and may overlap."""
    return IndexSet().union(*(IndexSet.from_ranges([pair]) for pair in zip(bounds[::2], bounds[1::2])))


def texts(names: Sequence[bytes]) -> tuple[str, ...]:
    """Decode names."""
    return tuple(name.decode() for name in names)
