"""Reads of one job as of one moment, and what a client remembers of jobs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import repeat
from typing import Any, NamedTuple

from celery_statemanager.errors import JobNotFound
from celery_statemanager.models import Scope, State
from celery_statemanager.records import Cell, Column, JobRecord, JobRef
from celery_statemanager.stores.redis.cells import cell_of
from celery_statemanager.stores.redis.columns import column_of, seen_state
from celery_statemanager.stores.redis.jobs import HEAD, WITH_PLAN, Head, plan_of, record_of
from celery_statemanager.stores.redis.keys import JobKeys, head_key
from celery_statemanager.stores.redis.layout import Layout
from celery_statemanager.stores.redis.rowsets import Missed, Portions, RowSets
from celery_statemanager.stores.redis.scripts import Script, Scripts
from celery_statemanager.stores.redis.server import Server

REMEMBERED = 1_000
"""Jobs whose plans are remembered at once."""

UNCHECKED = -1

SMALL = 10_000
"""Members of row sets that one script gives: 3 ms of the server's time."""


class Reader:
    """Runs scripts on jobs, for reading and otherwise. Thread-safe."""

    def __init__(self, server: Server, scripts: Scripts, prefix: str) -> None:
        self.server = server
        self.prefix = prefix
        self._scripts = scripts
        self._layouts: dict[JobRef, Layout] = {}

    def run(self, script: Script, ref: JobRef, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        """Run a script on a job. Raises: JobNotFound."""
        reply = self.server.run(script, keys, [ref.incarnation, *args])
        if reply[0] == b"gone":
            self._layouts.pop(ref, None)
            raise JobNotFound(*ref.key)
        return reply

    def layout(self, ref: JobRef) -> Layout:
        """Give what never changes of a job; asks only the first time. Raises: JobNotFound."""
        known = self._layouts.get(ref)
        if known is not None:
            return known
        head = self.server.call("HMGET", head_key(self.prefix, ref.key), *WITH_PLAN)
        if head[0] != ref.incarnation.encode():
            raise JobNotFound(*ref.key)
        return self.remember(record_of(ref.key, head, plan_of(head)))

    def remember(self, job: JobRecord) -> Layout:
        """Keep what never changes of a job."""
        if len(self._layouts) >= REMEMBERED:
            self._layouts.clear()
        layout = self._layouts[job.ref] = Layout(JobKeys(self.prefix, job.ref), job)
        return layout

    def cell(self, ref: JobRef, tag: str, row: int) -> Cell | None:
        """Give all that is kept of a cell. Raises: JobNotFound."""
        keys = self.layout(ref).keys
        key, field = keys.cell(tag, row)
        _, _, (packed,) = self.run(self._scripts.cells, ref, [keys.head, keys.tallies, key], [UNCHECKED, field])
        return None if packed is None else cell_of(packed)

    def row(self, ref: JobRef, scope: Scope, row: int) -> tuple[JobRecord, list[State]]:
        """Give a row's states under the scope's tag or all expected tags. Raises: JobNotFound."""
        layout = self.layout(ref)
        while True:
            tags, checked = self._tags(layout, scope.tag)
            tags = [tag for tag in tags if scope.tag is not None or layout.expects(tag, row)]
            keys = [layout.keys.head, layout.keys.tallies, *map(layout.keys.cells, tags)]
            word, *found = self.run(self._scripts.cells, ref, keys, [checked, *[row] * len(tags)])
            if word == b"read":
                job = record_of(ref.key, found[0], layout.job.plan)
                return job, [seen_state(job, tag, row, packed) for tag, packed in zip(tags, found[1])]
            layout.seen = [tag.decode() for tag in found]

    def columns(self, ref: JobRef, tag: str | None) -> tuple[JobRecord, list[Column]]:
        """Give the expected columns, or one. Raises: JobNotFound."""
        layout = self.layout(ref)
        return self._found(layout, tag).read(layout)

    def column_summaries(self, ref: JobRef, tag: str | None) -> tuple[JobRecord, list[Column]]:
        """Give the expected columns, or one, with the rows of each class. Raises: JobNotFound.

        Sets that are large are read in portions. Where the stream is too short to tell what changed meanwhile, they are
        read as a whole after all: the server does nothing else for a while.
        """
        layout = self.layout(ref)
        for most in (SMALL, SMALL, SMALL, sys.maxsize):
            found = self._found(layout, tag, most=most)
            if found.has_sets:
                break
            with suppress(Missed):
                portions = Portions(self.server, layout, found.tags, found.newest)
                found = self._found(layout, tag, since=portions.catch_up())
                return found.read(layout, portions.at_last(found.tags, found.changes))
        return found.read(layout)

    def _found(self, layout: Layout, tag: str | None, *, most: int = 0, since: int | None = None) -> _Found:
        """Run ``columns.lua``. Raises: JobNotFound."""
        while True:
            tags, checked = self._tags(layout, tag)
            keys = [layout.keys.head, layout.keys.tallies, layout.keys.stream]
            args: list[str | int] = [checked, most, "" if since is None else since]
            for each in tags:
                keys += layout.keys.column(each)
                args += [each, layout.ranks(each).row(0)]
            word, *found = self.run(self._scripts.columns, layout.job.ref, keys, args)
            if word == b"read":
                return _Found(tags, *found)
            layout.seen = [each.decode() for each in found]

    def _tags(self, layout: Layout, tag: str | None) -> tuple[list[str], int]:
        """Give the tags to read, and their number where the script must check that the job has seen no other."""
        if tag is not None:
            return [tag], UNCHECKED
        tags = layout.tags
        return tags, UNCHECKED if layout.planned else len(tags)


class _Found(NamedTuple):
    """What ``columns.lua`` gave."""

    tags: list[str]
    head: Head
    columns: list[Any]
    changes: list[Any] | None = None

    @property
    def has_sets(self) -> bool:
        return all(len(column) > 2 for column in self.columns)

    @property
    def newest(self) -> int:
        """The number of the job's newest change."""
        return int(self.head[HEAD.index("sequence")])

    def read(self, layout: Layout, sets: Iterable[RowSets | None] = repeat(None)) -> tuple[JobRecord, list[Column]]:
        """Give the job and its columns."""
        job = record_of(layout.job.key, self.head, layout.job.plan)
        found = zip(self.tags, self.columns, sets)
        return job, [column_of(job, tag, layout.ranks(tag), column, rows) for tag, column, rows in found]
