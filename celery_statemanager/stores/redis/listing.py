"""Lists that take several round trips: the states of a job, and the open attempts of all jobs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import NamedTuple

from celery_statemanager.models import Scope, State
from celery_statemanager.records import JobRecord, JobRef, Listed, OpenAttempt, Page
from celery_statemanager.stores.redis.cells import cell_of, split_sort_key, unpack_states, with_sort_keys
from celery_statemanager.stores.redis.jobs import HEAD, WITH_PLAN, plan_of, record_of
from celery_statemanager.stores.redis.keys import JobKeys, cell_key_of, entry_of, head_key, ref_of
from celery_statemanager.stores.redis.layout import JobLayout
from celery_statemanager.stores.redis.reader import JobReader, decode_visible_state
from celery_statemanager.stores.redis.registry import JobFilter, Registry, RegistryEntry, cursor_at
from celery_statemanager.stores.redis.server import Server

_STATES_CHUNK = 1_000
_JOBS_CHUNK = 100

_ATTEMPTS_CHUNK = 500
"""The approximate number of a job's open attempts in one chunk; each may contain a message of 64 KiB."""


class _AddressChunk(NamedTuple):
    """A chunk of a set of cell addresses, and the cursor of the next one, 0 at the end. Addresses may repeat."""

    cursor: int
    addresses: list[bytes]


class ScannedCells(NamedTuple):
    """Sorted cells, as ``with_sort_keys`` encodes them, and the tags by their rank in the sort keys."""

    tags: list[str]
    cells: list[bytes]


def scan(server: Server, layout: JobLayout, scope: Scope) -> ScannedCells:
    """Return the written cells of a scope in order, each as it was at the call or later."""
    keys = layout.keys
    tags = [scope.tag] if scope.tag is not None else [tag.decode() for tag in server.call("HKEYS", keys.tallies)]
    tags.sort()
    if scope.task_index is None:
        chunks = ((tag, cells) for tag in tags for cells in server.scan(keys.cells(tag)))
    else:
        row = str(scope.task_index).encode()
        packed = server.call_all(("HGET", keys.cells(tag), row) for tag in tags)
        chunks = ((tag, [(row, cell)]) for tag, cell in zip(tags, packed) if cell is not None)
    columns: dict[str, dict[bytes, bytes]] = {tag: {} for tag in tags}
    ranks = {tag: rank for rank, tag in enumerate(tags)}
    for tag, cells in chunks:
        columns[tag].update(with_sort_keys(ranks[tag], cells))
    return ScannedCells(tags, sorted(chain.from_iterable(column.values() for column in columns.values())))


def states_of(job: JobRecord, scanned: ScannedCells) -> Iterator[State]:
    """Decode the states of cells, chunk by chunk on demand."""
    tags, cells = scanned
    if job.cancelled is not None:
        return (decode_visible_state(job, tags[rank], row, packed) for rank, row, packed in map(split_sort_key, cells))
    chunks = (cells[first : first + _STATES_CHUNK] for first in range(0, len(cells), _STATES_CHUNK))
    return chain.from_iterable(unpack_states(job.job_id, tags, chunk) for chunk in chunks)


def jobs_at(
    server: Server, registry: Registry, prefix: str, entries: list[RegistryEntry]
) -> Iterator[tuple[RegistryEntry, JobRecord]]:
    """Yield registry entries with their jobs, except deleted ones, which are purged."""
    refs = [ref_of(entry) for entry, _ in entries]
    heads = server.call_all(("HMGET", head_key(prefix, ref.key), *WITH_PLAN) for ref in refs)
    for entry, ref, head in zip(entries, refs, heads):
        if head[0] == ref.incarnation.encode():
            yield entry, record_of(ref.key, head, plan_of(head))
        else:
            registry.purge_orphan(entry[0])


def page_of_jobs(reader: JobReader, registry: Registry, cursor: str | None, limit: int, wanted: JobFilter) -> Page:
    """Return a page of jobs as ``Store.list_jobs`` describes. Jobs that are no longer tombstoned are unlisted."""
    entries = registry.listed(cursor, limit, wanted)
    candidates = [job for _, job in jobs_at(reader.server, registry, reader.prefix, entries)]
    if wanted.tombstoned:
        for job in candidates:
            if job.tombstoned_at is None:
                registry.mark_revived(entry_of(job.ref))
    return Page(
        [job for job in candidates if wanted.matches(job)],
        cursor_at(entries[-1]) if entries and len(entries) == limit else None,
    )


def newest_jobs(reader: JobReader, registry: Registry, cursor: str | None, limit: int) -> list[Listed]:
    """Return jobs by the time of their registration as ``Store.newest_jobs`` describes."""
    newest: list[Listed] = []
    while (missing := limit - len(newest)) > 0:
        entries = registry.newest(cursor, missing)
        found = jobs_at(reader.server, registry, reader.prefix, entries)
        newest += [Listed(job, cursor_at(entry)) for entry, job in found]
        if len(entries) < missing:
            break
        cursor = cursor_at(entries[-1])
    return newest


def open_attempts(server: Server, registry: Registry, prefix: str, now: int) -> Iterator[OpenAttempt]:
    """Yield the open attempts of recently active jobs in chunks, and mark quiet jobs.

    Args:
        now: the registry's time in microseconds.
    """
    entries = registry.recently_active()
    quiet_since = now - registry.tuning.quiet_after * 1_000_000
    while chunk := list(islice(entries, _JOBS_CHUNK)):
        for entry, job, first in _read_jobs(server, prefix, chunk):
            if job is None:
                registry.purge_orphan(entry[0])
            elif any(first):
                yield from _attempts(server, prefix, job.ref, first)
            elif not job.due and entry[1] < quiet_since:
                registry.mark_quiet(entry[0])


def _read_jobs(
    server: Server, prefix: str, entries: list[RegistryEntry]
) -> Iterator[tuple[RegistryEntry, JobRecord | None, _AddressChunk]]:
    """Read jobs, and the first chunk of each one's addresses of open attempts."""
    refs = [ref_of(entry) for entry, _ in entries]
    keys = [JobKeys(prefix, ref) for ref in refs]
    commands = (command for each in keys for command in (("HMGET", each.head, *HEAD), _scan_of_open(each, 0)))
    replies = server.call_all(commands)
    for entry, ref, head, first in zip(entries, refs, replies[::2], replies[1::2]):
        exists = head[0] == ref.incarnation.encode()
        yield entry, record_of(ref.key, head, None) if exists else None, _AddressChunk(*first)


def _attempts(server: Server, prefix: str, ref: JobRef, first: _AddressChunk) -> Iterator[OpenAttempt]:
    keys, chunk = JobKeys(prefix, ref), first
    while True:
        cells = [cell_key_of(address) for address in dict.fromkeys(chunk.addresses)]
        commands = (("HGET", *keys.cell(tag, row)) for tag, row in cells)
        for (tag, row), packed in zip(cells, server.call_all(commands)):
            cell = packed and cell_of(packed)
            if cell and cell.held:
                yield OpenAttempt(ref, tag, row, cell)
        if not chunk.cursor:
            return
        chunk = _AddressChunk(*server.call(*_scan_of_open(keys, chunk.cursor)))


def _scan_of_open(keys: JobKeys, cursor: int) -> tuple[str | int, ...]:
    return "SSCAN", keys.open, cursor, "COUNT", _ATTEMPTS_CHUNK
