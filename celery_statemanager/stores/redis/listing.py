"""Lists that take more than one round trip: cells of a job, and open attempts of all jobs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import NamedTuple

from celery_statemanager.models import Scope, State
from celery_statemanager.records import JobRecord, JobRef, OpenAttempt
from celery_statemanager.stores.redis.cells import cell_of, parted, placed, unpacked_states
from celery_statemanager.stores.redis.columns import seen_state
from celery_statemanager.stores.redis.jobs import HEAD, WITH_PLAN, plan_of, record_of
from celery_statemanager.stores.redis.keys import JobKeys, address_of, entry_of, head_key, ref_of
from celery_statemanager.stores.redis.layout import Layout
from celery_statemanager.stores.redis.registry import REST_AFTER, Entry, Registry
from celery_statemanager.stores.redis.server import Server

_AT_ONCE = 1_000
_JOBS_AT_ONCE = 100

_ATTEMPTS_AT_ONCE = 500
"""Open attempts of a job in one portion, about; each may hold a message of 64 KiB."""


class _Portion(NamedTuple):
    """A part of a set: where it goes on, 0 at its end, and members; one may come twice."""

    cursor: int
    addresses: list[bytes]


class Found(NamedTuple):
    """Written cells in order, each behind its place, and the tags by their rank there."""

    tags: list[str]
    cells: list[bytes]


def scan(server: Server, layout: Layout, scope: Scope) -> Found:
    """Give the written cells of a scope in order, each at least as new as when this was called."""
    keys = layout.keys
    tags = [scope.tag] if scope.tag is not None else [tag.decode() for tag in server.call("HKEYS", keys.tallies)]
    tags.sort()
    if scope.task_index is None:
        portions = ((tag, cells) for tag in tags for cells in server.scan(keys.cells(tag)))
    else:
        row = str(scope.task_index).encode()
        packed = server.call_all(("HGET", keys.cells(tag), row) for tag in tags)
        portions = ((tag, [(row, cell)]) for tag, cell in zip(tags, packed) if cell is not None)
    found: dict[str, dict[bytes, bytes]] = {tag: {} for tag in tags}
    ranks = {tag: rank for rank, tag in enumerate(tags)}
    for tag, cells in portions:
        found[tag].update(placed(ranks[tag], cells))
    return Found(tags, sorted(chain.from_iterable(column.values() for column in found.values())))


def states_of(job: JobRecord, found: Found) -> Iterator[State]:
    """Unpack cells portion by portion, as they are asked for."""
    tags, cells = found
    if job.cancelled is not None:
        return (seen_state(job, tags[rank], row, packed) for rank, row, packed in map(parted, cells))
    portions = (cells[first : first + _AT_ONCE] for first in range(0, len(cells), _AT_ONCE))
    return chain.from_iterable(unpacked_states(job.job_id, tags, portion) for portion in portions)


def jobs_at(server: Server, registry: Registry, prefix: str, entries: list[Entry]) -> Iterator[JobRecord]:
    """Give the jobs of registry entries, less those that are gone."""
    refs = [ref_of(entry) for entry, _ in entries]
    heads = server.call_all(("HMGET", head_key(prefix, ref.key), *WITH_PLAN) for ref in refs)
    for (entry, _), ref, head in zip(entries, refs, heads):
        if head[0] == ref.incarnation.encode():
            yield record_of(ref.key, head, plan_of(head))
        else:
            registry.heal(entry)


def rid_of_revived(registry: Registry, jobs: Iterable[JobRecord]) -> None:
    """Take jobs without a mark out of the tombstoned ones."""
    for job in jobs:
        if job.tombstoned_at is None:
            registry.revive(entry_of(job.ref))


def open_attempts(server: Server, registry: Registry, prefix: str, now: int) -> Iterator[OpenAttempt]:
    """Yield the open attempts of live jobs in portions, and take jobs that are quiet out of the live ones.

    Args:
        now: the registry's time in microseconds.
    """
    entries = registry.live()
    quiet_since = now - REST_AFTER * 1_000_000
    while some := list(islice(entries, _JOBS_AT_ONCE)):
        for entry, job, first in _look(server, prefix, some):
            if job is None:
                registry.heal(entry[0])
            elif any(first):
                yield from _attempts(server, prefix, job.ref, first)
            elif not job.due and entry[1] < quiet_since:
                registry.rest(entry[0])


def _look(server: Server, prefix: str, entries: list[Entry]) -> Iterator[tuple[Entry, JobRecord | None, _Portion]]:
    """Read jobs, and of each the first portion of the addresses of its open attempts."""
    refs = [ref_of(entry) for entry, _ in entries]
    keys = [JobKeys(prefix, ref) for ref in refs]
    commands = (command for each in keys for command in (("HMGET", each.head, *HEAD), _scanning_open(each, 0)))
    replies = server.call_all(commands)
    for entry, ref, head, first in zip(entries, refs, replies[::2], replies[1::2]):
        alive = head[0] == ref.incarnation.encode()
        yield entry, record_of(ref.key, head, None) if alive else None, _Portion(*first)


def _attempts(server: Server, prefix: str, ref: JobRef, first: _Portion) -> Iterator[OpenAttempt]:
    keys, portion = JobKeys(prefix, ref), first
    while True:
        places = [address_of(address) for address in dict.fromkeys(portion.addresses)]
        wanted = (("HGET", *keys.cell(tag, row)) for tag, row in places)
        for (tag, row), packed in zip(places, server.call_all(wanted)):
            cell = packed and cell_of(packed)
            if cell and cell.open and cell.owner is not None:
                yield OpenAttempt(ref, tag, row, cell)
        if not portion.cursor:
            return
        portion = _Portion(*server.call(*_scanning_open(keys, portion.cursor)))


def _scanning_open(keys: JobKeys, cursor: int) -> tuple[str | int, ...]:
    return "SSCAN", keys.open, cursor, "COUNT", _ATTEMPTS_AT_ONCE
