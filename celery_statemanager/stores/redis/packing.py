"""The encoding of commands, and of structured values between clients and scripts: MessagePack, as for stored cells."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import msgpack

_unpackers: deque[msgpack.Unpacker] = deque(maxlen=8)
"""Idle unpackers. ``unpackb`` uses 40 KiB of stack per call, which doubles its time and grows each thread's memory."""


def pack(value: dict[str, Any]) -> bytes:
    """Pack a map for ``cmsgpack.unpack``, without the values that are None or False."""
    given = {name: part for name, part in value.items() if part is not None and part is not False}
    packed: bytes = msgpack.packb(given)
    return packed


def pack_array(values: Sequence[Any]) -> bytes:
    """Pack an array for ``cmsgpack.unpack``, without values at its end that are None or False."""
    size = len(values)
    while values[size - 1] is None or values[size - 1] is False:
        size -= 1
    packed: bytes = msgpack.packb(values[:size])
    return packed


def unpack(packed: bytes) -> list[Any]:
    """Return the elements of an array that ``cmsgpack.pack`` created."""
    try:
        unpacker = _unpackers.pop()
    except IndexError:
        unpacker = msgpack.Unpacker(read_size=1_024)
    unpacker.feed(packed)
    values: list[Any] = unpacker.unpack()
    _unpackers.append(unpacker)
    return values


def unpack_all(packed: Iterable[bytes]) -> Iterator[Any]:
    """Iterate over many packed values, in less than half the time of unpacking them one by one."""
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(b"".join(packed))
    return iter(unpacker)


def pack_command(*command: str | bytes | int) -> bytes:
    """Encode a command in the server's protocol, without redis-py."""
    return b"*%d\r\n" % len(command) + b"".join(map(_bulk, command))


def pack_script_call(name: str, script: str, keys: tuple[str, ...], args: Sequence[str | bytes | int]) -> bytes:
    """Encode a call of a script in the server's protocol.

    Args:
        name: EVALSHA or EVAL.
        script: the digest or the source.
    """
    return b"".join((b"*%d\r\n" % (3 + len(keys) + len(args)), _head(name, script, keys), *map(_bulk, args)))


@lru_cache(maxsize=1_000)
def _head(name: str, script: str, keys: tuple[str, ...]) -> bytes:
    """Encode the part of a call that is equal for all calls on the same cells."""
    return b"".join(map(_bulk, (name, script, str(len(keys)), *keys)))


def _bulk(arg: str | bytes | int) -> bytes:
    text = arg if isinstance(arg, bytes) else str(arg).encode()
    return b"$%d\r\n%b\r\n" % (len(text), text)
