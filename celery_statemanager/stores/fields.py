"""The table of a cell's fields, against which each store checks its codec at import.

If a field is added to ``Cell`` or ``Tally`` and a store does not keep it, the import of that store fails.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import fields

from celery_statemanager.models import SCHEMA_VERSION
from celery_statemanager.records import Cell, Delivery, Stall, Tally

EXAMPLES: dict[str, object] = {
    "status": 40,
    "message": "page 4 of 10",
    "payload": '{"rows":812,"progress":{"done":4,"total":10}}',
    "timestamp": 1_700_000_000_000_001,
    "version": 3,
    "event_id": "0123456789abcdef0123456789abcdef",
    "attempt": 2,
    "open": True,
    "delivery": Delivery(1, 2, 3),
    "owner": "host:1:abcdef01",
    "losses": 1,
    "kept": '{"m":1}',
    "blocked_by": "scan",
    "began_at": 1_700_000_000_000_000,
    "schema_version": SCHEMA_VERSION + 1,
    "generation": 2,
    "failures": 3,
    "stall": Stall(120_000_000, 1_700_000_000_000_000, "resize.py:88 read_tile"),
}
"""Each field of a cell, with a value other than its default."""


def check_cells(store: str, codec: str, round_trip: Callable[[Cell], Cell]) -> None:
    """Check that a store keeps every field of a cell.

    Args:
        codec: the module that the message names as the one to change.
        round_trip: encodes a cell for the store and decodes it again.

    Raises: RuntimeError.
    """
    names = [field.name for field in fields(Cell)]
    unlisted = set(names).symmetric_difference(EXAMPLES)
    if unlisted:
        raise RuntimeError(f"stores.fields.EXAMPLES and Cell differ in {', '.join(sorted(unlisted))}: change EXAMPLES")
    given = Cell(**EXAMPLES)  # type: ignore[arg-type]
    try:
        kept = round_trip(given)
    except Exception as error:
        raise RuntimeError(f"the {store} store cannot read the cell that it wrote ({error}): change {codec}") from error
    for name in names:
        if getattr(kept, name) != getattr(given, name):
            raise RuntimeError(
                f"the {store} store does not keep Cell.{name}: {getattr(given, name)!r} is read as "
                f"{getattr(kept, name)!r}; change {codec}"
            )


def check_tally(store: str, codec: str, kept: Collection[str]) -> None:
    """Check that a store keeps every field of a tally. Raises: RuntimeError."""
    for name in Tally._fields:
        if name not in kept:
            raise RuntimeError(f"the {store} store does not keep Tally.{name}: change {codec}")
