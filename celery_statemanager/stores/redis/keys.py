"""The names of all keys. The keys of one job share a hash tag, so that a cluster keeps them on one node. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from urllib.parse import unquote

from celery_statemanager.records import JobKey, JobRef
from celery_statemanager.stores.transactional import CellKey

_GLOB = re.compile(r"[*?\[\]^\\-]")
_SPECIAL = re.compile(r"[%{}:* ]")


class JobKeys:
    """The keys of one incarnation.

    Attributes:
        head: the job's record, which names its current incarnation. All incarnations share this key.
        tallies, open, stream, callbacks: see lua/common.lua.
        values, returned: see lua/returned.lua.
        draft, blocks: see lua/create.lua. Their names differ, so that nothing that is done to a draft reaches a job.
    """

    def __init__(self, prefix: str, ref: JobRef) -> None:
        self.head = head_key(prefix, ref.key)
        self._base = f"{self.head}:{ref.incarnation}"
        self.tallies, self.open, self.stream, self.callbacks = (
            f"{self._base}:{name}" for name in ("tallies", "open", "stream", "callbacks")
        )
        self.draft, self.blocks, self.values, self.returned = (
            f"{self._base}:{name}" for name in ("draft", "blocks", "values", "returned")
        )

    def cells(self, tag: str) -> str:
        """Return the key of the hash with a column's cells."""
        return f"{self._base}:cells:{tag}"

    def cell(self, tag: str, row: int) -> tuple[str, str | int]:
        """Return the key of the hash with a cell, and the cell's field in it."""
        return (self.callbacks, tag) if row < 0 else (self.cells(tag), row)

    def every(self, tags: Iterable[str]) -> Iterator[str]:
        """Yield all keys except the head, the tallies first.

        Args:
            tags: the tags of the job.
        """
        yield from (self.tallies, self.open, self.stream, self.callbacks)
        yield from (self.draft, self.blocks, self.values, self.returned)
        for tag in tags:
            yield from self.column(tag)

    def column(self, tag: str) -> tuple[str, str, str]:
        """Return the keys of a column: its cells, its rows sorted by status, its bitmap of written ranks."""
        return self.cells(tag), f"{self._base}:low:{tag}", f"{self._base}:written:{tag}"


class RegistryKeys:
    """The keys of the registry of jobs and workers. Their hash tag ``*`` is never that of a job."""

    def __init__(self, prefix: str) -> None:
        self.jobs, self.active, self.recently_active, self.tombstones, self.purge_queue, self.workers, self.drafts = (
            f"{prefix}:{{*}}:{name}" for name in ("jobs", "active", "live", "tombs", "trash", "workers", "drafts")
        )


def head_key(prefix: str, key: JobKey) -> str:
    """Return the key of a job's head."""
    return f"{prefix}:{{{_quoted(key)}}}"


def entry_of(ref: JobRef) -> str:
    """Encode a reference as an entry of the registry."""
    return f"{_quoted(ref.key)} {ref.incarnation}"


def pattern_of(job_id: str) -> str:
    """Return the glob pattern that matches the entries of all runs of a job_id."""
    return _GLOB.sub(r"\\\g<0>", _quoted(JobKey(job_id))) + "[: ]*"


def ref_of(entry: str | bytes) -> JobRef:
    """Decode an entry of the registry."""
    text = entry if isinstance(entry, str) else entry.decode()
    quoted, _, incarnation = text.partition(" ")
    job_id, colon, run_token = quoted.partition(":")
    return JobRef(JobKey(unquote(job_id), unquote(run_token) if colon else None), incarnation)


def cell_key_of(text: bytes) -> CellKey:
    """Decode the address of a cell, "row tag"."""
    row, _, tag = text.decode().partition(" ")
    return tag, int(row)


def _quoted(key: JobKey) -> str:
    return ":".join(_SPECIAL.sub(lambda match: f"%{ord(match[0]):02X}", name) for name in key if name is not None)
