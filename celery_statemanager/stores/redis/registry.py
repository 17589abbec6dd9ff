"""What is kept across jobs: which there are, which are at work, which are to be purged; and the workers' records."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from celery_statemanager.records import JobRef, WorkerRecord
from celery_statemanager.stores.redis.keys import JobKeys, RegistryKeys, entry_of, pattern_of, ref_of
from celery_statemanager.stores.redis.layout import Layout
from celery_statemanager.stores.redis.packing import unpack
from celery_statemanager.stores.redis.scripts import Scripts
from celery_statemanager.stores.redis.server import Server

TOUCH_INTERVAL = 60.0
"""Seconds during which a process does not say again that a job is at work."""

REST_AFTER = 600.0
"""Seconds after its last touch when a job that is found quiet is no longer looked at by sweeps."""

HEAL_AFTER = 3600.0
"""Seconds after which a registered job without a head was not just being created: its maker or deleter died."""

_SCANS, _SCANNED_AT_ONCE = 10, 10_000
"""Calls, and entries that the server examines in each, to find a job by its job_id: about 3 ms of its time each."""

WORKERS_AT_ONCE = 50
"""Workers' records in one portion, about; each may take 800 KiB."""

Entry = tuple[bytes, float]
"""A job's name in the registry, and its place in a list."""


class Registry:
    """Keys of their own slot: each is told before the job itself is changed, and is never ahead of it for long.

    A job is *live* from a touch until a sweep finds it quiet: nothing due, no attempt open, not touched for a
    while. Whatever happens to a job, a touch came at most a minute earlier; so sweeps need not look at others.
    """

    def __init__(self, server: Server, scripts: Scripts, prefix: str) -> None:
        self._server = server
        self._scripts = scripts
        self._prefix = prefix
        self.keys = RegistryKeys(prefix)
        self._lists = [self.keys.jobs, self.keys.active, self.keys.live, self.keys.tombs]

    def register(self, ref: JobRef) -> None:
        """Note a job that is about to be created."""
        self._server.run(self._scripts.touch, self._lists, [entry_of(ref), "new"])

    def adopt(self, ref: JobRef) -> None:
        """Note a job that is about to have this reference; whether it is marked deleted is seen when it is listed."""
        for what in ("new", "tomb"):
            self._server.run(self._scripts.touch, self._lists, [entry_of(ref), what])

    def touch(self, layout: Layout, what: str = "cell") -> bool:
        """Note that a job's cell (or ``"job"``, its record) is about to change, unless a short while ago.

        Args:
            what: ``"tomb"`` for a record that is about to be marked deleted, or still is.

        Returns: False if the job is not registered: it is gone, or the registry has lost it.
        """
        now = time.monotonic()
        if what != "tomb" and layout.touched_at is not None and now - layout.touched_at <= TOUCH_INTERVAL:
            return True
        registered = self._server.run(self._scripts.touch, self._lists, [entry_of(layout.job.ref), what])
        layout.touched_at = now if what == "cell" and registered else None
        return bool(registered)

    def forget(self, ref: JobRef) -> None:
        """Take back ``register``: the job was not created."""
        self._retire(entry_of(ref), "forget", "")

    def trash(self, ref: JobRef) -> None:
        """Note a job that was detached, for purging."""
        self._retire(entry_of(ref), "trash", "")

    def heal(self, entry: bytes) -> None:
        """Purge what is left of a registered job that has no head, if it is old enough not to be just being made."""
        self._retire(entry, "trash", int(HEAL_AFTER * 1_000_000))

    def rest(self, entry: bytes) -> None:
        """Take a job that was found quiet out of the live ones."""
        self._server.run(self._scripts.rest, [self.keys.live], [entry, int(REST_AFTER * 1_000_000)])

    def revive(self, entry: str) -> None:
        """Take a job that was found unmarked out of the tombstoned ones."""
        self._server.run(self._scripts.rest, [self.keys.tombs], [entry, int(REST_AFTER * 1_000_000)])

    def page(self, listed: str, cursor: str | None, limit: int, before: int | None = None) -> list[Entry]:
        """Give entries of a list after a cursor, by place and name."""
        place, _, name = (cursor or "0 ").partition(" ")
        after = (float(place), name.encode())
        most = "+inf" if before is None else f"({before}"
        wanted = limit + 1
        while True:
            found = self._entries(listed, place, most, wanted)
            page = [each for each in found if (each[1], each[0]) > after]
            if len(page) >= limit or len(found) < wanted:
                return page[:limit]
            wanted *= 2  # that many share one microsecond

    def listed(
        self, cursor: str | None, limit: int, *, due: bool, tombstoned: bool, idle_before: int | None
    ) -> list[Entry]:
        """Give a page of the shortest list that holds every job asked for, and others."""
        if due or tombstoned:
            return self.page(self.keys.live if due else self.keys.tombs, cursor, limit)
        return self.page(self.keys.jobs if idle_before is None else self.keys.active, cursor, limit, idle_before)

    def named(self, job_id: str, limit: int) -> list[Entry]:
        """Return jobs with a job_id, among the first 100,000 or so: entries are ordered by time, not by name."""
        found: dict[bytes, float] = {}
        cursor: bytes | int = 0
        for _ in range(_SCANS):
            scan = ("ZSCAN", self.keys.jobs, cursor, "MATCH", pattern_of(job_id), "COUNT", _SCANNED_AT_ONCE)
            cursor, entries = self._server.call(*scan)
            found.update(_paired(entries))
            if len(found) >= limit or int(cursor) == 0:
                break
        return list(found.items())[:limit]

    def live(self) -> Iterator[Entry]:
        """Give the jobs that sweeps must look at."""
        cursor: str | None = None
        while page := self.page(self.keys.live, cursor, 500):
            yield from page
            cursor = cursor_at(page[-1])

    def purge(self, limit: int) -> int:
        """Remove leftovers of about ``limit`` cells; give their number, and one for each job that is gone for good."""
        removed = 0
        for entry in self._server.call("SRANDMEMBER", self.keys.trash, limit):
            removed += self.purge_job(entry, limit - removed)
            if removed >= limit:
                break
        return removed

    def purge_job(self, entry: str | bytes, limit: int) -> int:
        """Remove leftovers of about ``limit`` cells of one job that was detached; return their number."""
        keys = JobKeys(self._prefix, ref_of(entry))
        removed = 0
        for tag in self._server.call("HKEYS", keys.tallies):
            column = keys.column(tag.decode())
            removed += int(self._server.call("HLEN", column[0]))
            self._server.call("UNLINK", *column)
            self._server.call("HDEL", keys.tallies, tag)
            if removed >= limit:
                return removed
        self._server.call("UNLINK", keys.tallies, keys.open, keys.stream, keys.callbacks)
        self._server.call("SREM", self.keys.trash, entry)
        return removed + 1

    def put_worker(self, worker_id: str, body: str, lease: float, *, in_turn: bool = False) -> bool:
        """Write a worker's record, or a turn if nobody else has it; whether it was written."""
        how = "turn" if in_turn else ""
        microseconds = round(lease * 1_000_000)
        return bool(self._server.run(self._scripts.worker, [self.keys.workers], [worker_id, body, microseconds, how]))

    def worker(self, worker_id: str) -> WorkerRecord | None:
        """Read one worker's record."""
        packed = self._server.call("HGET", self.keys.workers, worker_id)
        return None if packed is None else WorkerRecord(worker_id, *unpack(packed))

    def workers(self) -> Iterator[WorkerRecord]:
        """Yield each worker's record once, in portions."""
        seen: set[bytes] = set()
        for portion in self._server.scan(self.keys.workers, WORKERS_AT_ONCE):
            for worker, packed in portion:
                if worker not in seen:
                    seen.add(worker)
                    yield WorkerRecord(worker.decode(), *unpack(packed))

    def drop_worker(self, worker_id: str) -> None:
        """Forget a worker."""
        self._server.call("HDEL", self.keys.workers, worker_id)

    def _retire(self, entry: str | bytes, kind: str, age: str | int) -> None:
        self._server.run(self._scripts.retire, [*self._lists, self.keys.trash], [entry, kind, age])

    def _entries(self, listed: str, least: str, most: str, count: int) -> list[Entry]:
        return _paired(self._server.call("ZRANGEBYSCORE", listed, least, most, "WITHSCORES", "LIMIT", 0, count))


def _paired(found: list[Any]) -> list[Entry]:
    """Return entries with their places, which come in pairs or one after the other, depending on the protocol."""
    if found and not isinstance(found[0], (list, tuple)):
        found = list(zip(found[::2], found[1::2]))
    return [(entry, float(place)) for entry, place in found]


def cursor_at(entry: Entry) -> str:
    """Give where a list goes on after an entry."""
    return f"{entry[1]:.0f} {entry[0].decode()}"
