"""The encoding of cells as rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery_statemanager.records import Cell, Delivery, Stall
from celery_statemanager.stores.fields import check_cells, check_tally

NUMBERS = (
    "publication",
    "replacements",
    "retries",
    "losses",
    "generation",
    "failures",
    "stall_after",
    "stalled_since",
)
"""Columns that are NULL where a cell has the default, which is 1 for ``generation`` and 0 for the others."""

TEXTS = ("owner", "blocked_by", "stands_in", "message", "payload", "kept")

COLUMNS = (
    "status",
    "timestamp",
    "version",
    "event_id",
    "attempt",
    "open",
    "began_at",
    "schema_version",
    *NUMBERS,
    *TEXTS,
)
"""The columns of a cell in the order of ``row_of``."""

TALLY = (
    "running",
    "finished",
    "failed",
    "not_run",
    "succeeded",
    "ended",
    "failures",
    "pending",
    "rows",
    "failed_rows",
    "stalled",
    "progress",
)
"""The columns of a tally, as ``Tally`` orders them."""

SELECTED = ", ".join(f'c."{name}"' for name in COLUMNS)
"""The columns of a cell in a SELECT that names the table ``c``."""


_NO_STALL = Stall()
_NO_DELIVERY = Delivery()


def cell_of(row: Sequence[Any]) -> Cell:
    """Decode the columns ``SELECTED``."""
    (
        status,
        timestamp,
        version,
        event_id,
        attempt,
        is_open,
        began_at,
        schema_version,
        publication,
        replacements,
        retries,
        losses,
        generation,
        failures,
        stall_after,
        stalled_since,
        owner,
        blocked_by,
        stands_in,
        message,
        payload,
        kept,
    ) = row
    delivery = Delivery(publication or 0, replacements or 0, retries or 0)
    return Cell(
        status,
        message if message is None or message[:1] != _ESCAPE else unescaped(message),
        payload,
        timestamp,
        version,
        event_id.hex() if len(event_id) == _PACKED else event_of(event_id),
        attempt,
        is_open,
        delivery,
        owner,
        losses or 0,
        kept,
        blocked_by,
        began_at,
        schema_version,
        1 if generation is None else generation,
        failures or 0,
        Stall(stall_after or 0, stalled_since or 0, stands_in) if stall_after or stalled_since else _NO_STALL,
    )


def row_of(cell: Cell) -> tuple[Any, ...]:
    """Return a cell's values in the order of ``COLUMNS``, with the defaults of ``NUMBERS``."""
    return (
        cell.status,
        cell.timestamp,
        cell.version,
        packed(cell.event_id),
        cell.attempt,
        cell.open,
        cell.began_at,
        cell.schema_version,
        *cell.delivery,
        cell.losses,
        cell.generation,
        cell.failures,
        cell.stall.after,
        cell.stall.since,
        cell.owner,
        cell.blocked_by,
        cell.stall.stands_in,
        escaped(cell.message),
        cell.payload,
        cell.kept,
    )


_PACKED = 16


def packed(event_id: str) -> bytes:
    """Encode an event id; the ids that this library creates, 32 lower-case hex digits, become 16 bytes.

    Others become their UTF-8 after a byte 0. If they would have 16 bytes, they are between a byte 1 and a byte 0.
    """
    if len(event_id) == 2 * _PACKED:
        try:
            found = bytes.fromhex(event_id)
        except ValueError:
            found = b""
        if found.hex() == event_id:
            return found
    encoded = event_id.encode()
    return b"\0" + encoded if len(encoded) != _PACKED - 1 else b"\1" + encoded + b"\0"


def event_of(data: bytes) -> str:
    """Decode an event id that ``packed`` encoded."""
    if len(data) == _PACKED:
        return data.hex()
    return data[1:].decode() if data[0] == 0 else data[1:-1].decode()


_ESCAPE = "\x01"


def escaped(message: str | None) -> str | None:
    """Encode a message that contains NUL, which the server's texts cannot contain."""
    if message is None or ("\0" not in message and message[:1] != _ESCAPE):
        return message
    return _ESCAPE + message.replace(_ESCAPE, _ESCAPE + "b").replace("\0", _ESCAPE + "a")


def unescaped(message: str | None) -> str | None:
    """Decode a message that ``escaped`` encoded."""
    if message is None or message[:1] != _ESCAPE:
        return message
    return message[1:].replace(_ESCAPE + "a", "\0").replace(_ESCAPE + "b", _ESCAPE)


check_cells("PostgreSQL", __name__, lambda cell: cell_of(row_of(cell)))
check_tally("PostgreSQL", f"{__name__} and schema.py", TALLY)
