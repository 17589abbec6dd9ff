"""The periods and sizes of a Redis store."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tuning:
    """Periods in seconds, and sizes. They bound the time that a call takes from the server.

    Attributes:
        touch_interval: how long a process does not touch a job again.
        quiet_after: the time after its last touch at which a job may be marked quiet, so that sweeps do not read it.
        orphaned_after: the age at which a registered job without a head is an orphan: the process that created or
            deleted it has died. The server keeps a draft for this time after its lease, if it is not dropped before.
        set_members: the members of row sets that one script returns, which takes 3 ms of the server's time.
        set_chunk: the rows, or changes, in one chunk of a larger set.
        bitmap_chunk: the bytes of a bitmap in one chunk.
    """

    touch_interval: float = 60.0
    quiet_after: float = 600.0
    orphaned_after: float = 3_600.0
    set_members: int = 10_000
    set_chunk: int = 1_000
    bitmap_chunk: int = 65_536
