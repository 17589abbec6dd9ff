"""The names of all keys. Those of one job share a hash tag, so that a cluster keeps them together. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from urllib.parse import unquote

from celery_statemanager.records import JobKey, JobRef

_GLOB = re.compile(r"[*?\[\]^\\-]")
_SPECIAL = re.compile(r"[%{}:* ]")


class JobKeys:
    """The keys of one incarnation.

    Attributes:
        head: the job's record; the one key that a later incarnation will use again. It decides who lives.
        tallies, open, stream, callbacks: see lua/common.lua.
    """

    def __init__(self, prefix: str, ref: JobRef) -> None:
        self.head = head_key(prefix, ref.key)
        self._base = f"{self.head}:{ref.incarnation}"
        self.tallies, self.open, self.stream, self.callbacks = (
            f"{self._base}:{name}" for name in ("tallies", "open", "stream", "callbacks")
        )

    def cells(self, tag: str) -> str:
        """Name the hash of a column's cells."""
        return f"{self._base}:cells:{tag}"

    def cell(self, tag: str, row: int) -> tuple[str, str | int]:
        """Name a cell's hash and its field there."""
        return (self.callbacks, tag) if row < 0 else (self.cells(tag), row)

    def every(self, tags: Iterable[str]) -> Iterator[str]:
        """Name all keys but the head, the tallies first.

        Args:
            tags: those the job has seen.
        """
        yield from (self.tallies, self.open, self.stream, self.callbacks)
        for tag in tags:
            yield from self.column(tag)

    def column(self, tag: str) -> tuple[str, str, str]:
        """Name a column's cells, its order by status and its bitmap of written ranks."""
        return self.cells(tag), f"{self._base}:low:{tag}", f"{self._base}:written:{tag}"


class RegistryKeys:
    """What is kept about all jobs and workers. No job's hash tag is ``*``."""

    def __init__(self, prefix: str) -> None:
        self.jobs, self.active, self.live, self.tombs, self.trash, self.workers = (
            f"{prefix}:{{*}}:{name}" for name in ("jobs", "active", "live", "tombs", "trash", "workers")
        )


def head_key(prefix: str, key: JobKey) -> str:
    """Name the key that holds whichever incarnation of a job lives."""
    return f"{prefix}:{{{_quoted(key)}}}"


def entry_of(ref: JobRef) -> str:
    """Name a job in the registry."""
    return f"{_quoted(ref.key)} {ref.incarnation}"


def pattern_of(job_id: str) -> str:
    """Return what the registry's names of a job_id's runs match, as the server matches."""
    return _GLOB.sub(r"\\\g<0>", _quoted(JobKey(job_id))) + "[: ]*"


def ref_of(entry: str | bytes) -> JobRef:
    """Read what ``entry_of`` wrote."""
    text = entry if isinstance(entry, str) else entry.decode()
    quoted, _, incarnation = text.partition(" ")
    job_id, colon, run_token = quoted.partition(":")
    return JobRef(JobKey(unquote(job_id), unquote(run_token) if colon else None), incarnation)


def address_of(text: bytes) -> tuple[str, int]:
    """Read the address of a cell, "row tag", as its tag and row."""
    row, _, tag = text.decode().partition(" ")
    return tag, int(row)


def _quoted(key: JobKey) -> str:
    return ":".join(_SPECIAL.sub(_escape, name) for name in key if name is not None)


def _escape(match: re.Match[str]) -> str:
    return f"%{ord(match[0]):02X}"
