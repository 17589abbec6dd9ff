"""Reads what ``cmsgpack`` packs on the server: a flat array of texts, integers, floats, booleans and nothings."""

from __future__ import annotations

import struct
from typing import Any

_FIXED: dict[int, Any] = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {
    0xCA: struct.Struct(">f"),
    0xCB: struct.Struct(">d"),
    0xCC: struct.Struct(">B"),
    0xCD: struct.Struct(">H"),
    0xCE: struct.Struct(">I"),
    0xCF: struct.Struct(">Q"),
    0xD0: struct.Struct(">b"),
    0xD1: struct.Struct(">h"),
    0xD2: struct.Struct(">i"),
    0xD3: struct.Struct(">q"),
}
_LENGTHS = {0xD9: 1, 0xDA: 2, 0xDB: 4}


def unpack(data: bytes) -> list[Any]:
    """Give the elements of a packed array; its length is not needed, only its end."""
    at = 3 if data[0] == 0xDC else 1
    values: list[Any] = []
    while at < len(data):
        kind = data[at]
        at += 1
        if kind < 0x80:
            values.append(kind)
        elif kind >= 0xE0:
            values.append(kind - 0x100)
        elif 0xA0 <= kind < 0xC0:
            end = at + kind - 0xA0
            values.append(data[at:end].decode())
            at = end
        elif kind in _FIXED:
            values.append(_FIXED[kind])
        elif kind in _NUMBERS:
            number = _NUMBERS[kind]
            values.append(number.unpack_from(data, at)[0])
            at += number.size
        else:
            start = at + _LENGTHS[kind]
            end = start + int.from_bytes(data[at:start], "big")
            values.append(data[start:end].decode())
            at = end
    return values
