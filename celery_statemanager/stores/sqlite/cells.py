"""How a cell is spelt as a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery_statemanager.records import Cell, Delivery

COLUMNS = (
    "status",
    "timestamp",
    "version",
    "event_id",
    "attempt",
    "open",
    "replacements",
    "retries",
    "losses",
    "began_at",
    "schema_version",
    "owner",
    "blocked_by",
    "message",
    "payload",
    "kept",
)
SELECTED = ", ".join(f"c.{name}" for name in COLUMNS)
"""For a SELECT whose cell goes by the name ``c``."""


def cell_of(row: Sequence[Any]) -> Cell:
    """Read the columns ``SELECTED``."""
    (
        status,
        timestamp,
        version,
        event_id,
        attempt,
        is_open,
        replacements,
        retries,
        losses,
        began_at,
        schema_version,
        owner,
        blocked_by,
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
        Delivery(replacements, retries),
        owner,
        losses,
        kept,
        blocked_by,
        began_at,
        schema_version,
    )


def row_of(cell: Cell) -> tuple[Any, ...]:
    """Give a cell's values in the order of ``COLUMNS``."""
    return (
        cell.status,
        cell.timestamp,
        cell.version,
        event_of(cell),
        cell.attempt,
        int(cell.open),
        cell.delivery.replacements,
        cell.delivery.retries,
        cell.losses,
        cell.began_at,
        cell.schema_version,
        cell.owner,
        cell.blocked_by,
        cell.message,
        cell.payload,
        cell.kept,
    )


def event_of(cell: Cell) -> str | bytes:
    """Halve the event ids that this library makes: 32 lower-case hex digits become 16 bytes."""
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
    """Give the event id that ``event_of`` packed."""
    return event_id.hex() if isinstance(event_id, bytes) else event_id
