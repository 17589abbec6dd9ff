"""The encoding of cells as rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery_statemanager.records import Cell, Delivery, Stall
from celery_statemanager.stores.fields import check_cells, check_tally

COLUMNS = (
    "status",
    "timestamp",
    "version",
    "event_id",
    "attempt",
    "open",
    "publication",
    "replacements",
    "retries",
    "losses",
    "began_at",
    "schema_version",
    "generation",
    "failures",
    "stall_after",
    "stalled_since",
    "owner",
    "blocked_by",
    "stands_in",
    "message",
    "payload",
    "kept",
)
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

SELECTED = ", ".join(f"c.{name}" for name in COLUMNS)
"""The columns of a cell in a SELECT that names the table ``c``."""


_NO_STALL = Stall()


def cell_of(row: Sequence[Any]) -> Cell:
    """Decode the columns ``SELECTED``."""
    (
        status,
        timestamp,
        version,
        event_id,
        attempt,
        is_open,
        publication,
        replacements,
        retries,
        losses,
        began_at,
        schema_version,
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
    return Cell(
        status,
        message,
        payload,
        timestamp,
        version,
        unpacked(event_id),
        attempt,
        is_open == 1,
        Delivery(publication, replacements, retries),
        owner,
        losses,
        kept,
        blocked_by,
        began_at,
        schema_version,
        generation,
        failures,
        Stall(stall_after, stalled_since, stands_in) if stall_after or stalled_since else _NO_STALL,
    )


def row_of(cell: Cell) -> tuple[Any, ...]:
    """Return a cell's values in the order of ``COLUMNS``."""
    return (
        cell.status,
        cell.timestamp,
        cell.version,
        event_of(cell),
        cell.attempt,
        int(cell.open),
        *cell.delivery,
        cell.losses,
        cell.began_at,
        cell.schema_version,
        cell.generation,
        cell.failures,
        cell.stall.after,
        cell.stall.since,
        cell.owner,
        cell.blocked_by,
        cell.stall.stands_in,
        cell.message,
        cell.payload,
        cell.kept,
    )


def event_of(cell: Cell) -> str | bytes:
    """Encode an event id; the ids that this library creates, 32 lower-case hex digits, become 16 bytes."""
    event_id = cell.event_id
    if len(event_id) == 32:
        try:
            packed = bytes.fromhex(event_id)
        except ValueError:
            return event_id
        if packed.hex() == event_id:
            return packed
    return event_id


def unpacked(event_id: str | bytes) -> str:
    """Decode an event id that ``event_of`` encoded."""
    return event_id.hex() if isinstance(event_id, bytes) else event_id


check_cells("SQLite", __name__, lambda cell: cell_of(row_of(cell)))
check_tally("SQLite", f"{__name__} and schema.sql", TALLY)
