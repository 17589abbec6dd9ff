"""Writes and begins as the scripts are asked for them: keys, and arguments. Pure."""

from __future__ import annotations

from typing import Any

from celery_statemanager.models import SCHEMA_VERSION
from celery_statemanager.records import Begin, When, Write
from celery_statemanager.stores.redis.cells import NO_PAYLOAD, Payload, progress_parts, split
from celery_statemanager.stores.redis.layout import Layout, Place
from celery_statemanager.stores.redis.packing import pack_array

WRITE = (
    "tag",
    "row",
    "rank",
    "counts",
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
    "begin",
    "holder",
    "held",
    "counts_as_loss",
    "next_delivery",
    "schema",
)
"""What is asked of write.lua, in order, as ``records.Write`` says it, and:

``rank`` and ``counts`` are as in ``layout.Place``; ``when`` is ``"open"``, ``"idle"`` or nothing; ``later`` are the
places of the row's later stages, and ``not_run`` is what those are told; ``progress`` is JSON, ``share`` and ``full``
are what it amounts to as it is and once done, in units of ``1 / FRACTION_UNIT``; ``begin`` is as in ``BEGIN``;
``holder`` and ``held`` are ``if_owner``.
"""

BEGIN = (
    "tag",
    "row",
    "rank",
    "counts",
    "event_id",
    "message",
    "owner",
    "delivery",
    "kept",
    "takes_over",
    "supersedes",
    "later",
    "schema",
)
"""What is asked of begin.lua, in order, as ``records.Begin`` says it."""

Call = tuple[tuple[str, ...], list[str | bytes]]
"""Keys and arguments."""


def begin_call(layout: Layout, begin: Begin) -> Call:
    """Ask for an attempt."""
    keys, place, later = _places(layout, begin.tag, begin.task_index, row_too=True)
    return keys, [pack_array(_begin(begin, place, later))]


def write_call(layout: Layout, write: Write) -> Call:
    """Ask for a write."""
    row_too = write.block_later_stages or write.begin is not None
    keys, place, later = _places(layout, write.tag, write.task_index, row_too=row_too)
    payload = _payload(write)
    holder, held = write.if_owner or (None, None)
    request = (
        *place,
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
        write.begin and _begin(write.begin, place, later),
        holder,
        held,
        write.counts_as_loss,
        write.next_delivery,
        _schema(),
    )
    return keys, [pack_array(request), payload.rest or ""]


def _payload(write: Write) -> Payload:
    if not write.keep_payload:
        return split(write.payload)
    return NO_PAYLOAD if write.new_progress is None else progress_parts(write.new_progress)


def _begin(begin: Begin, place: Place, later: list[Place] | None) -> tuple[Any, ...]:
    return (
        *place,
        begin.event_id,
        begin.message,
        begin.owner,
        begin.delivery,
        begin.kept,
        begin.takes_over,
        begin.supersedes,
        later,
        _schema(),
    )


def _places(layout: Layout, tag: str, row: int, *, row_too: bool) -> tuple[tuple[str, ...], Place, list[Place] | None]:
    """Give the keys of a step on a cell, and its place; if asked, those of the row's later stages with it."""
    later = layout.job.plan.after(tag, row) if row_too and layout.job.plan else ()
    keys = layout.step_keys((tag, *later), of_callback=row < 0)
    return keys, layout.place(tag, row), [layout.place(each, row) for each in later] if later else None


def _schema() -> int | None:
    """Name the layout of new cells; the first one is not worth a byte."""
    return None if SCHEMA_VERSION == 1 else SCHEMA_VERSION
