"""Consistent reads of one job, the decoding of their replies, and the cache of job layouts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import repeat
from typing import Any, NamedTuple

from celery_statemanager.aggregate import lowest, mask_cancelled, missing_state
from celery_statemanager.errors import JobNotFound, StoreError
from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import Scope, State
from celery_statemanager.records import Cell, Column, JobRecord, JobRef
from celery_statemanager.stores.redis.cells import cell_of, decode_tally, state_of
from celery_statemanager.stores.redis.errors import evicted
from celery_statemanager.stores.redis.jobs import HEAD, WITH_PLAN, Head, plan_of, record_of
from celery_statemanager.stores.redis.keys import JobKeys, RegistryKeys, entry_of, head_key
from celery_statemanager.stores.redis.layout import JobLayout, Ranks
from celery_statemanager.stores.redis.rowsets import ChunkedRowSets, RowSets, StreamTrimmed
from celery_statemanager.stores.redis.scripts import Script, Scripts
from celery_statemanager.stores.redis.server import Server
from celery_statemanager.stores.redis.tuning import Tuning

MAX_LAYOUTS = 1_000
"""Jobs whose layouts are cached."""

UNCHECKED = -1
"""Sent instead of a number of tags: the script need not check that the job has no other tags."""


class JobReader:
    """Runs scripts on jobs and decodes what they read. Thread-safe."""

    def __init__(self, server: Server, scripts: Scripts, prefix: str, tuning: Tuning) -> None:
        self.server = server
        self.prefix = prefix
        self._scripts = scripts
        self._tuning = tuning
        self._layouts: dict[JobRef, JobLayout] = {}

    def run(self, script: Script, ref: JobRef, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        """Run a script on a job. Raises: JobNotFound, StoreError."""
        reply = self.server.run(script, keys, [ref.incarnation, *args])
        if reply[0] == b"gone":
            raise self.missing(ref)
        return reply

    def missing(self, ref: JobRef) -> JobNotFound | StoreError:
        """Return the error for a job whose head is missing or of another incarnation.

        Deletion marks the stream, then removes the job from the registry, then the stream. A registered job without a
        head and without the mark was evicted.
        """
        self._layouts.pop(ref, None)
        keys = JobKeys(self.prefix, ref)
        if self.server.call("HGET", keys.head, "incarnation") is None:
            newest = self.server.call("XREVRANGE", keys.stream, "+", "-", "COUNT", 1)
            deleted = newest and newest[0][1] == {b"j": b"deleted"}
            registered = self.server.call("ZSCORE", RegistryKeys(self.prefix).jobs, entry_of(ref)) is not None
            if registered and not deleted:
                return evicted(keys.head, self.server.shown)
        return JobNotFound(*ref.key)

    def layout(self, ref: JobRef) -> JobLayout:
        """Return a job's layout, from the cache after the first call. Raises: JobNotFound."""
        cached = self._layouts.get(ref)
        if cached is not None:
            return cached
        head = self.server.call("HMGET", head_key(self.prefix, ref.key), *WITH_PLAN)
        if head[0] != ref.incarnation.encode():
            raise self.missing(ref)
        return self.cache_layout(record_of(ref.key, head, plan_of(head)))

    def cache_layout(self, job: JobRecord) -> JobLayout:
        """Cache and return a job's layout."""
        if len(self._layouts) >= MAX_LAYOUTS:
            self._layouts.clear()
        layout = self._layouts[job.ref] = JobLayout(JobKeys(self.prefix, job.ref), job)
        return layout

    def cell(self, ref: JobRef, tag: str, row: int) -> Cell | None:
        """Return a cell with all its fields. Raises: JobNotFound."""
        keys = self.layout(ref).keys
        key, field = keys.cell(tag, row)
        _, _, (packed,) = self.run(
            self._scripts.cells, ref, [keys.head, keys.tallies, key], [UNCHECKED, field, "" if row < 0 else tag]
        )
        return None if packed is None else cell_of(packed)

    def row(self, ref: JobRef, scope: Scope, row: int) -> tuple[JobRecord, list[State]]:
        """Return a row's states under the scope's tag or all expected tags. Raises: JobNotFound."""
        layout = self.layout(ref)
        while True:
            tags, checked = self._tags(layout, scope.tag)
            tags = [tag for tag in tags if scope.tag is not None or layout.expects(tag, row)]
            keys = [layout.keys.head, layout.keys.tallies, *map(layout.keys.cells, tags)]
            status, *reply = self.run(self._scripts.cells, ref, keys, [checked, *_places(tags, row)])
            if status == b"read":
                job = record_of(ref.key, reply[0], layout.job.plan)
                return job, [decode_visible_state(job, tag, row, packed) for tag, packed in zip(tags, reply[1])]
            layout.tags_read = [tag.decode() for tag in reply]

    def check(self, ref: JobRef, tags: Sequence[str]) -> JobRecord:
        """Return the job, and check that no column of these tags was evicted. Raises: JobNotFound, StoreError."""
        layout = self.layout(ref)
        keys = [layout.keys.head, layout.keys.tallies, *map(layout.keys.cells, tags)]
        _, head, _ = self.run(self._scripts.cells, ref, keys, [UNCHECKED, *_places(tags, 0)])
        return record_of(ref.key, head, layout.job.plan)

    def columns(self, ref: JobRef, tag: str | None) -> tuple[JobRecord, list[Column]]:
        """Return the expected columns, or one. Raises: JobNotFound."""
        layout = self.layout(ref)
        return self._read_columns(layout, tag).decode(layout)

    def column_summaries(self, ref: JobRef, tag: str | None) -> tuple[JobRecord, list[Column]]:
        """Return the expected columns, or one, with the rows of each class. Raises: JobNotFound.

        Large sets are read in chunks. If the stream is too short to contain all changes during these reads, one script
        finally reads the sets as a whole, which blocks the server for that time.
        """
        layout = self.layout(ref)
        for limit in (*[self._tuning.set_members] * 3, sys.maxsize):
            reply = self._read_columns(layout, tag, set_limit=limit)
            if reply.has_sets:
                break
            with suppress(StreamTrimmed):
                chunked = ChunkedRowSets(self.server, layout, reply.tags, reply.newest, self._tuning)
                reply = self._read_columns(layout, tag, since=chunked.catch_up())
                return reply.decode(layout, chunked.finish(reply.tags, reply.changes))
        return reply.decode(layout)

    def _read_columns(
        self, layout: JobLayout, tag: str | None, *, set_limit: int = 0, since: int | None = None
    ) -> _ColumnsReply:
        """Run ``columns.lua``. Raises: JobNotFound."""
        while True:
            tags, checked = self._tags(layout, tag)
            keys = [layout.keys.head, layout.keys.tallies, layout.keys.stream, layout.keys.open]
            args: list[str | int] = [checked, set_limit, "" if since is None else since]
            for each in tags:
                keys += layout.keys.column(each)
                args += [each, layout.ranks(each).row(0)]
            status, *reply = self.run(self._scripts.columns, layout.job.ref, keys, args)
            if status == b"read":
                return _ColumnsReply(tags, *reply)
            layout.tags_read = [each.decode() for each in reply]

    def _tags(self, layout: JobLayout, tag: str | None) -> tuple[list[str], int]:
        """Return the tags to read, and the number of tags against which the script checks the job's, or UNCHECKED."""
        if tag is not None:
            return [tag], UNCHECKED
        tags = layout.tags
        return tags, UNCHECKED if layout.planned else len(tags)


class _ColumnsReply(NamedTuple):
    """A reply of ``columns.lua`` and the tags to which it refers."""

    tags: list[str]
    head: Head
    columns: list[Any]
    changes: list[Any] | None = None

    @property
    def has_sets(self) -> bool:
        return all(len(column) > 3 for column in self.columns)

    @property
    def newest(self) -> int:
        """The number of the job's newest change."""
        return int(self.head[HEAD.index("sequence")])

    def decode(
        self, layout: JobLayout, sets: Iterable[RowSets | None] = repeat(None)
    ) -> tuple[JobRecord, list[Column]]:
        """Return the job and its columns.

        Args:
            sets: the row sets of each column, unless the reply contains them.
        """
        job = record_of(layout.job.key, self.head, layout.job.plan)
        columns = zip(self.tags, self.columns, sets)
        return job, [_decode_column(job, tag, layout.ranks(tag), column, rows) for tag, column, rows in columns]


def _places(tags: Iterable[str], row: int) -> Iterator[str | int]:
    """Yield the arguments of ``cells.lua`` for a row under some tags."""
    for tag in tags:
        yield from (row, tag)


def decode_visible_state(job: JobRecord, tag: str, row: int, packed: bytes | None) -> State:
    """Decode a packed cell, or a missing one, to the state that readers of its job see."""
    if packed is None:
        return missing_state(job, tag, row)
    state = state_of(job.job_id, tag, row, packed)
    return state if job.cancelled is None else mask_cancelled(job, cell_of(packed), state)


def _decode_column(job: JobRecord, tag: str, ranks: Ranks, reply: Sequence[Any], sets: RowSets | None) -> Column:
    tally, unwritten = decode_tally(reply[0])
    cells = reply[1]
    states = [
        decode_visible_state(job, tag, int(row), packed)
        for row, packed in zip(cells[::2], cells[1::2])
        if packed is not None
    ]
    if unwritten < len(ranks):
        states.append(missing_state(job, tag, ranks.row(unwritten)))
    column = Column(tag, len(ranks), tally, lowest(states))
    sets = RowSets.from_reply(ranks, *reply[3:8]) if len(reply) > 3 else sets
    if sets is not None:
        column.failed, column.running, column.missing, column.not_run = sets
        column.stalled = IndexSet(row for row in map(int, reply[2]) if ranks.rank(row) >= 0)
    return column
