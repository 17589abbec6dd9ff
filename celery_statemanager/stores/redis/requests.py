"""Writes and begins as the scripts are asked for them: keys, and arguments. Pure."""

from __future__ import annotations

from typing import Any

from celery_statemanager.models import SCHEMA_VERSION
from celery_statemanager.records import Begin, When, Write
from celery_statemanager.stores.redis.cells import Payload, progress_parts, split
from celery_statemanager.stores.redis.layout import Layout
from celery_statemanager.stores.redis.packing import pack

Call = tuple[list[str], list[str | bytes]]
"""Keys and arguments."""


def begin_call(layout: Layout, begin: Begin) -> Call:
    """Ask for an attempt."""
    keys, places = _places(layout, begin.tag, begin.task_index, row_too=True)
    request = {"places": places, "schema": _schema(), **_begin(begin)}
    return keys, [pack(request)]


def write_call(layout: Layout, write: Write) -> Call:
    """Ask for a write."""
    row_too = write.cascades or write.begin is not None
    keys, places = _places(layout, write.tag, write.task_index, row_too=row_too)
    payload = _payload(write)
    request = {
        "places": places,
        "status": int(write.status),
        "event_id": write.event_id,
        "message": write.message,
        "keeps_payload": write.keeps_payload,
        "progress": payload.progress,
        "share": payload.share,
        "full": payload.full,
        "attempt": write.attempt,
        "begin": write.begin and _begin(write.begin),
        "when": None if write.when is When.ANY else write.when.value,
        "closes": write.closes,
        "yields": write.yields,
        "cascades": write.cascades,
        "not_run": f"not run: stage {write.tag!r} failed: " if write.cascades else None,
        "losing": write.losing,
        "next_delivery": write.next_delivery,
        "schema": _schema(),
    }
    if write.held_by is not None:
        request["holder"], request["held"] = write.held_by
    return keys, [pack(request), payload.rest or ""]


def _payload(write: Write) -> Payload:
    if not write.keeps_payload:
        return split(write.payload)
    return Payload(None) if write.progress is None else progress_parts(write.progress)


def _begin(begin: Begin) -> dict[str, Any]:
    fields = {
        "event_id": begin.event_id,
        "delivery": begin.delivery,
        "owner": begin.owner,
        "kept": begin.kept,
        "message": begin.message,
        "supersedes": begin.supersedes,
        "takes_over": begin.takes_over,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _places(layout: Layout, tag: str, row: int, *, row_too: bool) -> tuple[list[str], list[Any]]:
    """Give the keys and places of a cell and, if asked, of the row's later stages."""
    later = layout.job.plan.after(tag, row) if row_too and layout.job.plan else ()
    keys = [layout.keys.head, layout.keys.tallies, layout.keys.open, layout.keys.stream]
    places = []
    for each in (tag, *later):
        column, place = layout.place(each, row)
        keys += column
        places.append(place)
    return keys, places


def _schema() -> int | None:
    """Name the layout of new cells; the first one is not worth a byte."""
    return None if SCHEMA_VERSION == 1 else SCHEMA_VERSION
