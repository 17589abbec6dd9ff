"""The encoding of cells. The progress of a payload is a field of its own, so that scripts need not parse JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgpack

from celery_statemanager.codec import compact
from celery_statemanager.models import State, fraction_of, state_from_fields
from celery_statemanager.records import FRACTION_UNIT, Cell, Delivery, Stall, Tally, message_with_place, to_datetime
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
    "publication",
    "generation",
    "failures",
    "stall_after",
    "stalled_since",
    "stands_in",
)
"""The fields of a packed cell, in order. Empty fields at the end are left out. Add new ones at the end.

``timestamp`` comes first, so that packed cells can be sorted.

``payload`` lacks its ``progress``, which is a field of its own as JSON text. ``share`` is the value of this progress,
``full`` its value once done. ``done`` marks a progress that counts as done: ``payload_of`` completes it.
"""

TALLY = (
    "running",
    "finished",
    "failed",
    "succeeded",
    "ended",
    "failures",
    "pending",
    "progress",
    "unwritten",
    "not_run",
    "written",
    "rows",
    "failed_rows",
    "stalled",
)
"""The fields of a packed tally, in order. Zeros at the end are left out. Add new ones at the end.

``written`` is the number of written ranks and ``rows`` that of ended rows, unless a release without them wrote the
column's first cell. ``rows`` then stays 0: such a job has no messages, and nothing needs the number. ``failed_rows`` is
then missing, see ``decode_tally``.
"""


_BEYOND_PERCENT = 1_000
"""A status that is not a percentage, so that ``fraction_of`` uses the progress alone."""

_LONG = 0xDC
"""The first byte of a packed array of more than 15 elements; two bytes of its size follow."""

_EMPTY = [False] * len(CELL)
_FIRST = Delivery()
_NO_STALL = Stall()
_SCHEMA = CELL.index("schema")
_STALLED_SINCE = CELL.index("stalled_since")
_STANDS_IN = CELL.index("stands_in")
_STATE_FIELDS = CELL.index("replacements")
"""How many of the first fields make up a state, apart from its schema."""

_UNCHANGED = ("timestamp", "status", "version", "attempt", "open", "owner")
"""The fields that a migration never changes."""


class PayloadParts(NamedTuple):
    """A payload in two parts, and the value of its progress in units of ``1 / FRACTION_UNIT``, if it has one."""

    rest: str | None
    progress: str | None = None
    share: int | None = None
    full: int | None = None


NO_PAYLOAD = PayloadParts(None)


def split(payload: str | None) -> PayloadParts:
    """Split a payload into its progress and the rest."""
    if payload is None:
        return NO_PAYLOAD
    if '"progress"' not in payload:
        return PayloadParts(payload)
    parts = json.loads(payload)
    if "progress" not in parts:
        return PayloadParts(payload)
    progress = parts.pop("progress")
    return PayloadParts(compact(parts) if parts else None, *_progress_fields(progress))


def progress_parts(progress: str) -> PayloadParts:
    """Return the parts of a payload that consists of a progress only."""
    return PayloadParts(None, *_progress_fields(json.loads(progress)))


def payload_of(rest: str | None, progress: str | None, done: bool) -> str | None:
    """Join the parts of a payload that ``split`` returned; set the progress to its total if it is done."""
    if progress is None:
        return rest
    if done:
        progress = compact(_completed(json.loads(progress)))
    head = "{" if rest in (None, "{}") else f"{rest[:-1]}," if rest else ""
    return f'{head}"progress":{progress}}}'


def decode_tally(packed: bytes | None) -> tuple[Tally, int]:
    """Decode a packed tally, and return it with the lowest rank that was never written.

    If an earlier release wrote the first cell, the failed rows are not counted and include those that are CANCELLED.
    """
    values = zip(TALLY, unpack(packed)) if packed else ()
    counts = {name: number for name, number in values if number is not False}
    unwritten = counts.pop("unwritten", 0)
    counts.pop("written", None)
    tally = Tally(**counts)
    if "failed_rows" not in counts:
        tally = tally._replace(failed_rows=tally.ended - tally.succeeded - tally.not_run)
    return tally, unwritten


def cell_of(packed: bytes) -> Cell:
    """Decode a packed cell."""
    # No helpers here and in ``_state``, because one of the two runs for every write and every state that is read.
    (timestamp, status, version, event_id, attempt, is_open, message, rest, progress, _, _, done,
     replacements, retries, owner, began_at, losses, kept, blocked_by, schema,
     publication, generation, failures, stall_after, stalled_since, stands_in) = _values(packed)  # fmt: skip
    return Cell(
        status,
        None if message is False else message,
        payload_of(rest or None, progress or None, done) if rest or progress else None,
        timestamp,
        version,
        event_id or "",
        attempt or 0,
        is_open,
        Delivery(publication or 0, replacements or 0, retries or 0)
        if publication or replacements or retries
        else _FIRST,
        owner or None,
        losses or 0,
        kept or None,
        blocked_by or None,
        began_at or 0,
        schema or 1,
        generation or 1,
        failures or 0,
        Stall(stall_after or 0, stalled_since or 0, stands_in or None) if stall_after or stalled_since else _NO_STALL,
    )


def repacked(packed: bytes, new: Cell) -> bytes:
    """Return a packed cell with the changes of a migration; all other fields keep their encoding."""
    values, old = _values(packed), cell_of(packed)
    if new.payload != old.payload:
        parts = split(new.payload)
        values[7:12] = [parts.rest, parts.progress, parts.share, parts.full, False]
    values[3], values[6] = new.event_id, new.message
    values[20], values[12], values[13] = new.delivery
    values[15:20] = [new.began_at, new.losses, new.kept, new.blocked_by, new.schema_version]
    values[21:26] = [new.generation, new.failures, *new.stall]
    for at in (19, 21):
        if values[at] == 1:  # the default is not stored, as in requests
            values[at] = False
    values = [False if value is None else value for value in values]
    while not values[-1]:
        values.pop()
    result: bytes = msgpack.packb(values)
    return result


def state_of(job_id: str, tag: str, row: int, packed: bytes) -> State:
    """Decode the state in a packed cell, without creating a ``Cell``."""
    return _state(job_id, tag, row, unpack(packed))


def with_sort_keys(rank: int, cells: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Prefix each packed cell of a column with its sort key: its timestamp, the rank of its tag, and its row.

    Each result is one byte string that sorts without being decoded, and the MessagePack of four values.
    """
    tag = b"\xce" + rank.to_bytes(4, "big") + b"\xa7"
    return {
        row: (packed[1:10] if packed[0] != _LONG else packed[3:12]) + tag + row.rjust(7) + packed
        for row, packed in cells
    }


def split_sort_key(cell: bytes) -> tuple[int, int, bytes]:
    """Return the rank, the row and the packed cell of a cell ``with_sort_keys``."""
    return int.from_bytes(cell[10:14], "big"), int(cell[15:22]), cell[22:]


def unpack_states(job_id: str, tags: Sequence[str], cells: Sequence[bytes]) -> Iterator[State]:
    """Decode the states of many cells ``with_sort_keys`` at once.

    Args:
        tags: the tags by rank.
    """
    parts = unpack_all(cells)
    for _, rank, row, values in zip(parts, parts, parts, parts):
        yield _state(job_id, tags[rank], int(row), values)


def _state(job_id: str, tag: str, row: int, values: list[Any]) -> State:
    size = len(values)
    if size < _STATE_FIELDS:
        values += _EMPTY[size:_STATE_FIELDS]
    timestamp, status, version, event_id, attempt, _, message, rest, progress, _, _, done = values[:_STATE_FIELDS]
    payload = payload_of(rest or None, progress or None, done) if rest or progress else None
    message = None if message is False else message
    stalled = size > _STALLED_SINCE and bool(values[_STALLED_SINCE])
    if stalled and size > _STANDS_IN:
        message = message_with_place(message, values[_STANDS_IN])
    return state_from_fields(
        job_id,
        row,
        tag,
        status,
        message,
        json.loads(payload) if payload else None,
        to_datetime(timestamp),
        version,
        event_id or None,
        attempt or 0,
        (values[_SCHEMA] or 1) if size > _SCHEMA else 1,
        stalled,
    )


def _values(packed: bytes) -> list[Any]:
    values = unpack(packed)
    return values + _EMPTY[len(values) :]


def _progress_fields(progress: Any) -> tuple[str, int | None, int | None]:
    return compact(progress), _units(progress), _units(_completed(progress))


def _units(progress: Any) -> int | None:
    share = fraction_of(_BEYOND_PERCENT, progress)
    return None if share is None else round(share * FRACTION_UNIT)


def _completed(progress: Any) -> Any:
    if isinstance(progress, dict) and "total" in progress and "done" in progress:
        return {**progress, "done": progress["total"]}
    return progress


def _round_trip(cell: Cell) -> Cell:
    values = [getattr(cell, name) if name in _UNCHANGED else False for name in CELL]
    return cell_of(repacked(pack_array(values), cell))


check_cells("Redis", f"{__name__} and the scripts that build cells, lua/storing.lua and lua/attempts.lua", _round_trip)
check_tally("Redis", f"{__name__} and lua/common.lua", TALLY)
