"""Cells as they are kept: packed, and a payload's progress apart from the rest, so that scripts need no JSON of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgpack

from celery_statemanager.codec import compact
from celery_statemanager.models import State, fraction_of, state_from_fields
from celery_statemanager.records import FRACTION_UNIT, Cell, Delivery, to_datetime
from celery_statemanager.stores.fields import check_cells, check_tally
from celery_statemanager.stores.redis.packing import pack_array, unpack, unpack_all

CELL = (
    "timestamp",
    "status",
    "version",
    "event_id",
    "attempt",
    "open",
    "message",
    "payload",
    "progress",
    "share",
    "full",
    "done",
    "replacements",
    "retries",
    "owner",
    "began_at",
    "losses",
    "kept",
    "blocked_by",
    "schema",
)
"""The fields of a packed cell, in order; what is missing at the end is empty. New ones go to the end.

``timestamp`` comes first, so that cells are sorted without being unpacked.

``payload`` is without its ``progress``, which stands apart as JSON text with its ``share`` as it is and, in
``full``, once done; ``done`` says that it counts as done: ``payload_of`` writes it so.
"""

TALLY = (
    "running",
    "finished",
    "failed",
    "succeeded",
    "ended",
    "failed_final",
    "pending",
    "progress",
    "unwritten",
    "not_run",
)
"""The fields of a packed tally, in order; what is missing at the end is 0. New ones go to the end."""

_BEYOND_PERCENT = 1_000

_LONG = 0xDC
"""The first byte of an array of more than 15 elements: its first one is behind a size of two bytes."""


class Payload(NamedTuple):
    """A payload in two parts, and what its progress amounts to in units of ``1 / FRACTION_UNIT``, if anything."""

    rest: str | None
    progress: str | None = None
    share: int | None = None
    full: int | None = None


NO_PAYLOAD = Payload(None)


def split(payload: str | None) -> Payload:
    """Part a payload from its progress."""
    if payload is None:
        return NO_PAYLOAD
    if '"progress"' not in payload:
        return Payload(payload)
    parts = json.loads(payload)
    if "progress" not in parts:
        return Payload(payload)
    progress = parts.pop("progress")
    return Payload(compact(parts) if parts else None, *_weighed(progress))


def progress_parts(progress: str) -> Payload:
    """Give a progress alone."""
    return Payload(None, *_weighed(json.loads(progress)))


def payload_of(rest: str | None, progress: str | None, done: bool) -> str | None:
    """Join what ``split`` parted."""
    if progress is None:
        return rest
    if done:
        progress = compact(_completed(json.loads(progress)))
    head = "{" if rest in (None, "{}") else f"{rest[:-1]}," if rest else ""
    return f'{head}"progress":{progress}}}'


def cell_of(packed: bytes) -> Cell:
    """Read a packed cell. Written out, for it is on every write's way, as ``state_of`` is on every state's read."""
    (timestamp, status, version, event_id, attempt, is_open, message, rest, progress, _, _, done,
     replacements, retries, owner, began_at, losses, kept, blocked_by, schema) = _values(packed)  # fmt: skip
    return Cell(
        status,
        None if message is False else message,
        payload_of(rest or None, progress or None, done) if rest or progress else None,
        timestamp,
        version,
        event_id or "",
        attempt or 0,
        is_open,
        Delivery(replacements or 0, retries or 0) if replacements or retries else _FIRST,
        owner or None,
        losses or 0,
        kept or None,
        blocked_by or None,
        began_at or 0,
        schema or 1,
    )


def repacked(packed: bytes, new: Cell) -> bytes:
    """Give a packed cell with what a migration changed of it; what it left alone stays as it is kept."""
    values, old = _values(packed), cell_of(packed)
    if new.payload != old.payload:
        parts = split(new.payload)
        values[7:12] = [parts.rest, parts.progress, parts.share, parts.full, False]
    values[3], values[6], values[12:14] = new.event_id, new.message, list(new.delivery)
    values[15:20] = [new.began_at, new.losses, new.kept, new.blocked_by, new.schema_version]
    if new.schema_version == 1:  # not worth a byte: see requests
        values[19] = False
    values = [False if value is None else value for value in values]
    while not values[-1]:
        values.pop()
    again: bytes = msgpack.packb(values)
    return again


def state_of(job_id: str, tag: str, row: int, packed: bytes) -> State:
    """Read of a packed cell what readers see, without a ``Cell`` on the way."""
    return _state(job_id, tag, row, unpack(packed))


def placed(rank: int, cells: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Put each packed cell of a column behind its place among others: its timestamp, the tag's rank, and its row.

    In one piece of bytes that sorts by itself, and that is MessagePack of four values: lists are long.
    """
    tag = b"\xce" + rank.to_bytes(4, "big") + b"\xa7"
    return {
        row: (packed[1:10] if packed[0] != _LONG else packed[3:12]) + tag + row.rjust(7) + packed
        for row, packed in cells
    }


def parted(cell: bytes) -> tuple[int, int, bytes]:
    """Give the rank, the row and the packed cell of what ``placed`` joined."""
    return int.from_bytes(cell[10:14], "big"), int(cell[15:22]), cell[22:]


def unpacked_states(job_id: str, tags: Sequence[str], cells: Sequence[bytes]) -> Iterator[State]:
    """Read many cells that were ``placed``, all at once.

    Args:
        tags: by rank.
    """
    parts = unpack_all(cells)
    for _, rank, row, values in zip(parts, parts, parts, parts):
        yield _state(job_id, tags[rank], int(row), values)


def _state(job_id: str, tag: str, row: int, values: list[Any]) -> State:
    said = len(values)
    if said < len(_UNSAID):
        values += _UNSAID[said:]
    timestamp, status, version, event_id, attempt, _, message, rest, progress, _, _, done = values[:12]
    payload = payload_of(rest or None, progress or None, done) if rest or progress else None
    return state_from_fields(
        job_id,
        row,
        tag,
        status,
        None if message is False else message,
        json.loads(payload) if payload else None,
        to_datetime(timestamp),
        version,
        event_id or None,
        attempt or 0,
        (values[_SCHEMA] or 1) if said > _SCHEMA else 1,
    )


def _values(packed: bytes) -> list[Any]:
    values = unpack(packed)
    return values + _EMPTY[len(values) :]


_EMPTY = [False] * len(CELL)
_SCHEMA = CELL.index("schema")
_UNSAID = _EMPTY[:12]
"""What a state is made of, schema aside, where a cell says nothing of it."""

_FIRST = Delivery()


def _weighed(progress: Any) -> tuple[str, int | None, int | None]:
    return compact(progress), _units(progress), _units(_completed(progress))


def _units(progress: Any) -> int | None:
    share = fraction_of(_BEYOND_PERCENT, progress)
    return None if share is None else round(share * FRACTION_UNIT)


def _completed(progress: Any) -> Any:
    if isinstance(progress, dict) and "total" in progress and "done" in progress:
        return {**progress, "done": progress["total"]}
    return progress


_UNCHANGED = ("timestamp", "status", "version", "attempt", "open", "owner")
"""What a migration leaves as it is."""


def _round_trip(cell: Cell) -> Cell:
    begun = [getattr(cell, name) if name in _UNCHANGED else False for name in CELL]
    return cell_of(repacked(pack_array(begun), cell))


check_cells("Redis", f"{__name__} and the scripts that build cells, lua/common.lua and lua/attempts.lua", _round_trip)
check_tally("Redis", f"{__name__} and lua/common.lua", TALLY)
