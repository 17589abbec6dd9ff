"""The messages of jobs in blocks, and the claims of rows."""

from __future__ import annotations

from itertools import chain
from math import ceil

from celery_statemanager.indexset import IndexSet
from celery_statemanager.records import Claim, Claimed, ClaimRequest, JobRef, OutboxState, Returned
from celery_statemanager.stores.capabilities import draft_expired
from celery_statemanager.stores.redis.errors import evicted
from celery_statemanager.stores.redis.keys import JobKeys
from celery_statemanager.stores.redis.layout import set_bits
from celery_statemanager.stores.redis.packing import pack, unpack
from celery_statemanager.stores.redis.reader import JobReader
from celery_statemanager.stores.redis.registry import Registry
from celery_statemanager.stores.redis.requests import rows_of
from celery_statemanager.stores.redis.scripts import Scripts


def add_block(reader: JobReader, registry: Registry, ref: JobRef, first: int, data: bytes, lease: float) -> None:
    """Store a block of a draft. The draft is listed before it is stored, so that an interrupted call leaves no garbage.

    The first block creates the draft. Without it, ``create_job`` fails too. Raises: StoreError.

    The server may execute a call that has timed out after the draft was dropped. It then deletes the block by itself.
    No script takes the data, because it would copy them several times.
    """
    key = JobKeys(reader.prefix, ref).draft
    registry.extend_draft(ref, lease)
    seconds = ceil(lease + registry.tuning.orphaned_after)
    is_draft, *_ = reader.server.call_all([("HEXISTS", key, 0), ("HSET", key, first, data), ("EXPIRE", key, seconds)])
    if first and not is_draft:
        drop_draft(reader, registry, ref)
        raise draft_expired(ref.key)


def get_block(reader: JobReader, ref: JobRef, row: int) -> tuple[int, bytes] | None:
    """Return the block with a row, and its first row. Raises: StoreError if a stored job has lost its blocks."""
    keys = JobKeys(reader.prefix, ref)
    while True:
        in_draft, in_job = reader.server.call_all([("HKEYS", keys.draft), ("HKEYS", keys.blocks)])
        key, fields = (keys.blocks, in_job) if in_job else (keys.draft, in_draft)
        first = max((number for number in map(int, fields) if number <= row), default=None)
        if first is None:
            break
        data = reader.server.call("HGET", key, first)
        if data is not None:  # otherwise the job was created or deleted meanwhile
            return first, data
    incarnation, window = reader.server.call("HMGET", keys.head, "incarnation", "window")
    if incarnation == ref.incarnation.encode() and window is not None:
        raise evicted(keys.blocks, reader.server.shown)
    return None


def drop_draft(reader: JobReader, registry: Registry, ref: JobRef) -> None:
    """Delete a draft."""
    reader.server.call("UNLINK", JobKeys(reader.prefix, ref).draft)
    registry.forget_draft(ref)


def get_state(reader: JobReader, scripts: Scripts, ref: JobRef) -> OutboxState:
    """Return which rows are claimed and which were returned. Raises: JobNotFound."""
    keys = JobKeys(reader.prefix, ref)
    _, claimed, num_tasks, returned, *claims = reader.run(scripts.outbox, ref, [keys.head, keys.returned], [])
    found = {publisher.decode(): _claim_of(packed) for publisher, packed in zip(claims[::2], claims[1::2])}
    return OutboxState(claimed, found, _returned_of(returned, num_tasks))


def claim(reader: JobReader, scripts: Scripts, ref: JobRef, request: ClaimRequest) -> Claimed:
    """Claim rows to publish. Raises: JobNotFound."""
    keys = JobKeys(reader.prefix, ref)
    fields = {
        "publisher": request.publisher,
        "limit": request.limit,
        "lease": round(request.lease * 1_000_000),
        "dead": list(request.dead),
        "ended": list(request.ended),
        "drop_unclaimed": request.drop_unclaimed,
        "begun": [*chain(*request.returned.begun.ranges)],
        "waiting": [*chain(*request.returned.waiting.ranges)],
    }
    status, *reply = reader.run(scripts.claim, ref, [keys.head, keys.returned], [pack(fields)])
    if status == b"none":
        return Claimed(IndexSet(), IndexSet(), 0)
    bounds, again, left = reply
    return Claimed(rows_of(bounds), rows_of(bounds[:again]), left)


def _claim_of(packed: bytes) -> Claim:
    at, until, *bounds = unpack(packed)
    return Claim(rows_of(bounds), at, until)


def _returned_of(bitmap: bytes, num_tasks: int) -> Returned:
    """Decode the bitmap of lua/returned.lua."""
    size = -(-num_tasks // 8)
    begun, waiting = (set_bits(part, len(part) * 8) for part in (bitmap[:size], bitmap[size:]))
    return Returned(begun, waiting)
