"""The format in which clients and scripts exchange what has parts, and in which cells are kept: MessagePack."""

from __future__ import annotations

from collections import deque
from typing import Any

import msgpack

_unpackers: deque[msgpack.Unpacker] = deque(maxlen=8)
"""Idle ones. ``unpackb`` takes 40 KiB of the stack at each call: twice the time, and a page more in each thread."""


def pack(value: dict[str, Any]) -> bytes:
    """Pack a request for ``cmsgpack.unpack``; what is None or False is left out."""
    given = {name: part for name, part in value.items() if part is not None and part is not False}
    packed: bytes = msgpack.packb(given)
    return packed


def unpack(packed: bytes) -> list[Any]:
    """Give the elements of an array that ``cmsgpack.pack`` made."""
    try:
        unpacker = _unpackers.pop()
    except IndexError:
        unpacker = msgpack.Unpacker(read_size=1_024)
    unpacker.feed(packed)
    values: list[Any] = unpacker.unpack()
    _unpackers.append(unpacker)
    return values
