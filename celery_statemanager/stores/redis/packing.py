"""The format in which clients and scripts exchange what has parts, and in which cells are kept: MessagePack."""

from __future__ import annotations

from typing import Any

import msgpack


def pack(value: dict[str, Any]) -> bytes:
    """Pack a request for ``cmsgpack.unpack``; what is None or False is left out."""
    given = {name: part for name, part in value.items() if part is not None and part is not False}
    packed: bytes = msgpack.packb(given)
    return packed


def unpack(packed: bytes) -> list[Any]:
    """Give the elements of an array that ``cmsgpack.pack`` made."""
    values: list[Any] = msgpack.unpackb(packed)
    return values
