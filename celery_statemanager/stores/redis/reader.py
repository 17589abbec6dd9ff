"""Reads of one job as of one moment, and what a client remembers of jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery_statemanager.errors import JobNotFound
from celery_statemanager.models import Scope, State
from celery_statemanager.records import Cell, Column, JobRecord, JobRef
from celery_statemanager.stores.redis.cells import cell_of
from celery_statemanager.stores.redis.columns import column_of, seen_state
from celery_statemanager.stores.redis.jobs import WITH_PLAN, plan_of, record_of
from celery_statemanager.stores.redis.keys import JobKeys, head_key
from celery_statemanager.stores.redis.layout import Layout
from celery_statemanager.stores.redis.scripts import Script, Scripts
from celery_statemanager.stores.redis.server import Server

REMEMBERED = 1_000
"""Jobs whose plans are remembered at once."""

UNCHECKED = -1


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

    def columns(self, ref: JobRef, tag: str | None, *, indexes: bool = False) -> tuple[JobRecord, list[Column]]:
        """Give the expected columns, or one. Raises: JobNotFound."""
        layout = self.layout(ref)
        while True:
            tags, checked = self._tags(layout, tag)
            keys = [layout.keys.head, layout.keys.tallies]
            args: list[str | int] = [checked, int(indexes)]
            for each in tags:
                keys += layout.keys.column(each)
                args += [each, layout.ranks(each).row(0)]
            word, *found = self.run(self._scripts.columns, ref, keys, args)
            if word == b"read":
                job = record_of(ref.key, found[0], layout.job.plan)
                return job, [column_of(job, each, layout.ranks(each), column) for each, column in zip(tags, found[1])]
            layout.seen = [each.decode() for each in found]

    def _tags(self, layout: Layout, tag: str | None) -> tuple[list[str], int]:
        """Give the tags to read, and their number where the script must check that the job has seen no other."""
        if tag is not None:
            return [tag], UNCHECKED
        tags = layout.tags
        return tags, UNCHECKED if layout.planned else len(tags)
