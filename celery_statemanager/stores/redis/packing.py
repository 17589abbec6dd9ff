"""What goes over the wire: commands, and the format in which clients and scripts exchange what has parts.

That is MessagePack, in which cells are kept too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import msgpack

_unpackers: deque[msgpack.Unpacker] = deque(maxlen=8)
"""Idle ones. ``unpackb`` takes 40 KiB of the stack at each call: twice the time, and a page more in each thread."""


def pack(value: dict[str, Any]) -> bytes:
    """Pack a request for ``cmsgpack.unpack``; what is None or False is left out."""
    given = {name: part for name, part in value.items() if part is not None and part is not False}
    packed: bytes = msgpack.packb(given)
    return packed


def pack_array(values: Sequence[Any]) -> bytes:
    """Pack a request for ``cmsgpack.unpack``; what is None or False at its end is left out."""
    size = len(values)
    while values[size - 1] is None or values[size - 1] is False:
        size -= 1
    packed: bytes = msgpack.packb(values[:size])
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


def unpack_all(packed: Iterable[bytes]) -> Iterator[Any]:
    """Give many values, in less than half the time that one by one would take."""
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(b"".join(packed))
    return iter(unpacker)


def pack_command(*command: str | bytes | int) -> bytes:
    """Pack a command as it is sent, for connections on which redis-py need not do it."""
    return b"*%d\r\n" % len(command) + b"".join(map(_bulk, command))


def pack_script_call(name: str, script: str, keys: tuple[str, ...], args: Sequence[str | bytes | int]) -> bytes:
    """Pack a call of a script.

    Args:
        name: EVALSHA or EVAL.
        script: the digest or the text.
    """
    return b"".join((b"*%d\r\n" % (3 + len(keys) + len(args)), _head(name, script, keys), *map(_bulk, args)))


@lru_cache(maxsize=1_000)
def _head(name: str, script: str, keys: tuple[str, ...]) -> bytes:
    """Pack what is the same at each call on the same cells: most of it."""
    return b"".join(map(_bulk, (name, script, str(len(keys)), *keys)))


def _bulk(arg: str | bytes | int) -> bytes:
    text = arg if isinstance(arg, bytes) else str(arg).encode()
    return b"$%d\r\n%b\r\n" % (len(text), text)
