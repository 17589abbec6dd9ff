"""The registry: which jobs exist, are recently active, tombstoned or to be purged; and the records of workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from celery_statemanager.limits import parse_cursor
from celery_statemanager.records import JobRecord, JobRef, WorkerRecord
from celery_statemanager.stores.redis.keys import JobKeys, RegistryKeys, entry_of, pattern_of, ref_of
from celery_statemanager.stores.redis.layout import JobLayout
from celery_statemanager.stores.redis.packing import unpack
from celery_statemanager.stores.redis.scripts import Scripts
from celery_statemanager.stores.redis.server import Server
from celery_statemanager.stores.redis.tuning import Tuning

_SCANS, _SCAN_CHUNK = 20, 1_000
"""The calls that search for a job by its job_id, and the entries that the server examines in each, within 1 ms."""

_DRAFTS_CHUNK = 100

WORKERS_CHUNK = 50
"""The approximate number of workers' records in one chunk; each may have 800 KiB."""

RegistryEntry = tuple[bytes, float]
"""The encoded reference of a job, and its score in a sorted set."""


class JobFilter(NamedTuple):
    """The jobs that a list contains, as the arguments of ``Store.list_jobs``."""

    due: bool
    tombstoned: bool
    idle_before: int | None

    def matches(self, job: JobRecord) -> bool:
        """Return whether the list contains a job."""
        return (
            (not self.due or job.due)
            and (not self.tombstoned or job.tombstoned_at is not None)
            and (self.idle_before is None or job.last_activity < self.idle_before)
        )


class Registry:
    """Sorted sets of jobs and a hash of workers, in a slot of their own. They are updated before the job itself.

    A job is *recently active* from a touch until a sweep finds it quiet: nothing due, no attempt open, not touched for
    ``quiet_after`` seconds. A touch precedes each change by at most a minute, so sweeps read only recently active jobs.
    """

    def __init__(self, server: Server, scripts: Scripts, prefix: str, tuning: Tuning) -> None:
        self._server = server
        self._scripts = scripts
        self._prefix = prefix
        self.tuning = tuning
        self.keys = RegistryKeys(prefix)
        self._lists = [self.keys.jobs, self.keys.active, self.keys.recently_active, self.keys.tombstones]

    def register(self, ref: JobRef) -> None:
        """Record a job that is about to be created."""
        self._server.run(self._scripts.touch, self._lists, [entry_of(ref), "new"])

    def adopt(self, ref: JobRef) -> None:
        """Record a job that is about to get this reference, and list it as tombstoned until a list reads its record."""
        for change in ("new", "tombstone"):
            self._server.run(self._scripts.touch, self._lists, [entry_of(ref), change])

    def touch(self, layout: JobLayout, change: str = "cell") -> bool:
        """Record that a job is about to change, unless this process did so within ``touch_interval``.

        Args:
            change: ``"cell"``; ``"job"`` for its record; ``"tombstone"`` for its record if it is tombstoned.

        Returns: False if the job is not registered, because it was deleted or the registry was lost.
        """
        now, touched_at = time.monotonic(), layout.touched_at
        if change != "tombstone" and touched_at is not None and now - touched_at <= self.tuning.touch_interval:
            return True
        registered = self._server.run(self._scripts.touch, self._lists, [entry_of(layout.job.ref), change])
        layout.touched_at = now if change == "cell" and registered else None
        return bool(registered)

    def forget(self, ref: JobRef) -> None:
        """Undo ``register`` for a job that was not created."""
        self._retire(entry_of(ref), "forget", "")

    def queue_purge(self, ref: JobRef) -> None:
        """Remove a deleted job from the lists and queue its keys for ``purge``."""
        self._retire(entry_of(ref), "purge", "")

    def purge_orphan(self, entry: bytes) -> None:
        """Queue the keys of a registered job without a head for ``purge``, unless it was registered recently."""
        self._retire(entry, "purge", int(self.tuning.orphaned_after * 1_000_000))

    def mark_quiet(self, entry: bytes) -> None:
        """Remove a quiet job from the recently active ones, unless it was touched recently."""
        self._unlist(self.keys.recently_active, entry, self.tuning.quiet_after)

    def mark_revived(self, entry: str) -> None:
        """Remove a job whose record is not tombstoned from the tombstones, unless it was added recently."""
        self._unlist(self.keys.tombstones, entry, self.tuning.quiet_after)

    def page(self, key: str, cursor: str | None, limit: int, before: int | None = None) -> list[RegistryEntry]:
        """Return the entries of a sorted set after a cursor, by score and member."""
        score, _, member = (cursor or "0 ").partition(" ")
        after = (float(score), member.encode())
        call = ("ZRANGEBYSCORE", key, score, "+inf" if before is None else f"({before}")
        return self._page(call, limit, lambda each: (each[1], each[0]) > after)

    def newest(self, cursor: str | None, limit: int) -> list[RegistryEntry]:
        """Return the registered jobs after a cursor, by descending time of registration.

        Raises: ValueError – the cursor is invalid.
        """
        if cursor is None:
            return self._page(("ZREVRANGEBYSCORE", self.keys.jobs, "+inf", "-inf"), limit, lambda _: True)
        score, member = parse_cursor(cursor)
        before = (float(score), member.encode())
        call = ("ZREVRANGEBYSCORE", self.keys.jobs, str(score), "-inf")
        return self._page(call, limit, lambda each: (each[1], each[0]) < before)

    def _page(
        self, call: tuple[str, ...], limit: int, is_after: Callable[[RegistryEntry], bool]
    ) -> list[RegistryEntry]:
        """Return the first entries of a range that come after the cursor at which the range begins."""
        count = limit + 1
        while True:
            entries = _entries_of(self._server.call(*call, "WITHSCORES", "LIMIT", 0, count))
            page = [each for each in entries if is_after(each)]
            if len(page) >= limit or len(entries) < count:
                return page[:limit]
            count *= 2  # all entries read have the cursor's score

    def listed(self, cursor: str | None, limit: int, wanted: JobFilter) -> list[RegistryEntry]:
        """Return a page of the shortest list that contains every job that is wanted; it may contain others."""
        if wanted.due or wanted.tombstoned:
            return self.page(self.keys.recently_active if wanted.due else self.keys.tombstones, cursor, limit)
        idle_before = wanted.idle_before
        return self.page(self.keys.jobs if idle_before is None else self.keys.active, cursor, limit, idle_before)

    def named(self, job_id: str, limit: int) -> list[RegistryEntry]:
        """Return jobs with a job_id. Only about 20,000 entries are searched, because they are not sorted by name."""
        found: dict[bytes, float] = {}
        cursor: bytes | int = 0
        for _ in range(_SCANS):
            scan = ("ZSCAN", self.keys.jobs, cursor, "MATCH", pattern_of(job_id), "COUNT", _SCAN_CHUNK)
            cursor, reply = self._server.call(*scan)
            found.update(_entries_of(reply))
            if len(found) >= limit or int(cursor) == 0:
                break
        return list(found.items())[:limit]

    def recently_active(self) -> Iterator[RegistryEntry]:
        """Yield the jobs that sweeps must read."""
        cursor: str | None = None
        while page := self.page(self.keys.recently_active, cursor, 500):
            yield from page
            cursor = cursor_at(page[-1])

    def purge(self, limit: int) -> int:
        """Remove about ``limit`` cells of deleted jobs; return their number, plus one for each job without any."""
        removed = 0
        for entry in self._server.call("SRANDMEMBER", self.keys.purge_queue, limit):
            removed += self.purge_job(entry, limit - removed)
            if removed >= limit:
                break
        return removed

    def purge_job(self, entry: str | bytes, limit: int) -> int:
        """Remove about ``limit`` cells of one deleted job; return their number, plus one if none is left."""
        ref = ref_of(entry)
        keys = JobKeys(self._prefix, ref)
        _, found = self._server.call_all([("UNLINK", keys.draft), ("HGET", keys.head, "incarnation")])
        if found == ref.incarnation.encode():  # created after it had been purged as an orphan; later it cannot be
            self.register(ref)
            self._server.call("SREM", self.keys.purge_queue, entry)
            return 1
        removed = 0
        for tag in self._server.call("HKEYS", keys.tallies):
            column = keys.column(tag.decode())
            removed += int(self._server.call("HLEN", column[0]))
            self._server.call("UNLINK", *column)
            self._server.call("HDEL", keys.tallies, tag)
            if removed >= limit:
                return removed
        self._server.call("UNLINK", *keys.every(()))
        self._server.call("SREM", self.keys.purge_queue, entry)
        return removed + 1

    def extend_draft(self, ref: JobRef, lease: float) -> None:
        """Record that blocks of a job are about to be stored, which is about to be created within ``lease`` seconds."""
        self._server.run(self._scripts.draft, [self.keys.drafts], [entry_of(ref), round(lease * 1_000_000)])

    def forget_draft(self, ref: JobRef) -> None:
        """Remove a draft that was created as a job, or deleted, from the list of drafts."""
        self._server.call("ZREM", self.keys.drafts, entry_of(ref))

    def drop_expired_drafts(self) -> int:
        """Delete the drafts whose lease has ended; return their number."""
        now, cursor, dropped = self._server.time_at(self.keys.drafts), None, 0
        while page := self.page(self.keys.drafts, cursor, _DRAFTS_CHUNK, now):
            keys = (JobKeys(self._prefix, ref_of(entry)) for entry, _ in page)
            dropped += sum(self._server.call_all(("UNLINK", each.draft) for each in keys))
            for entry, _ in page:
                self._unlist(self.keys.drafts, entry, 0.0)  # unless its submitter has extended the lease meanwhile
            cursor = cursor_at(page[-1])
        return dropped

    def put_worker(self, worker_id: str, body: str, lease: float, *, as_lock: bool = False) -> bool:
        """Write a worker's record; return whether it was written. A lock is not written while another holder has it."""
        mode = "lock" if as_lock else ""
        microseconds = round(lease * 1_000_000)
        return bool(self._server.run(self._scripts.worker, [self.keys.workers], [worker_id, body, microseconds, mode]))

    def worker(self, worker_id: str) -> WorkerRecord | None:
        """Read one worker's record."""
        packed = self._server.call("HGET", self.keys.workers, worker_id)
        return None if packed is None else WorkerRecord(worker_id, *unpack(packed))

    def workers(self) -> Iterator[WorkerRecord]:
        """Yield each worker's record once, read in chunks."""
        seen: set[bytes] = set()
        for chunk in self._server.scan(self.keys.workers, WORKERS_CHUNK):
            for worker, packed in chunk:
                if worker not in seen:
                    seen.add(worker)
                    yield WorkerRecord(worker.decode(), *unpack(packed))

    def drop_worker(self, worker_id: str) -> None:
        """Delete a worker's record."""
        self._server.call("HDEL", self.keys.workers, worker_id)

    def _unlist(self, key: str, entry: str | bytes, age: float) -> None:
        self._server.run(self._scripts.unlist, [key], [entry, int(age * 1_000_000)])

    def _retire(self, entry: str | bytes, kind: str, age: str | int) -> None:
        self._server.run(self._scripts.retire, [*self._lists, self.keys.purge_queue], [entry, kind, age])


def _entries_of(reply: list[Any]) -> list[RegistryEntry]:
    """Return entries with their scores. The protocol's version decides whether a reply contains pairs or alternates."""
    if reply and not isinstance(reply[0], (list, tuple)):
        reply = list(zip(reply[::2], reply[1::2]))
    return [(entry, float(score)) for entry, score in reply]


def cursor_at(entry: RegistryEntry) -> str:
    """Return the cursor with which a list continues after an entry."""
    return f"{entry[1]:.0f} {entry[0].decode()}"
