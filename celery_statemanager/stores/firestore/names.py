"""How jobs and cells are named as documents: plain names give plain ids, others are encoded reversibly. Pure."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from urllib.parse import unquote

from celery_statemanager.errors import StoreError
from celery_statemanager.records import CALLBACK_ROW, JobKey, JobRef
from celery_statemanager.stores.firestore.address import Address

LONGEST_ID = 1_500
"""Bytes of an id, Firestore's limit."""

MOST_IDS = 10_000
"""Ids of jobs and cells that are not made again at each write."""

_RERUN = "%+"
_HASHED = "%#"


@lru_cache(MOST_IDS)
def job_id_of(key: JobKey) -> str:
    """Give a job's document id; a rerun has one of its own, ``JOB%+TOKEN``.

    Raises: StoreError – a name alone is longer than an id may be.
    """
    job = _fitting("job_id", _escaped(key.job_id))
    if key.run_token is None:
        return _fitting("job_id", _whole(job))
    joined = _whole(f"{job}{_RERUN}{_fitting('run_token', _escaped(key.run_token))}")
    if len(joined.encode()) <= LONGEST_ID:
        return joined
    return _HASHED + hashlib.sha256(joined.encode()).hexdigest()


@lru_cache(MOST_IDS)
def cell_id_of(tag: str, task_index: int) -> str:
    """Give a cell's document id, ``{tag}:{taskID}``; the last colon parts them, so a tag may hold others."""
    return _fitting("tag", f"{_escaped(tag)}:{task_index}")


def place_of(cell_id: str) -> tuple[str, int]:
    """Read what ``cell_id_of`` made."""
    tag, _, row = cell_id.rpartition(":")
    return unquote(tag), int(row)


def _whole(escaped: str) -> str:
    """Encode what may not be a whole id: ``.``, ``..`` and ``__x__``."""
    if escaped in {".", ".."} or re.fullmatch(r"__.*__", escaped, re.DOTALL):
        return f"%{ord(escaped[0]):02X}{escaped[1:]}"
    return escaped


def _escaped(name: str) -> str:
    """Encode what may not be part of an id, and what the encoding itself uses."""
    return name.replace("%", "%25").replace("/", "%2F")


def _fitting(kind: str, name: str) -> str:
    size = len(name.encode())
    if size > LONGEST_ID:
        raise StoreError(f"{kind} takes {size} bytes as a document id, Firestore allows {LONGEST_ID}: {name[:60]!r}…")
    return name


class Names:
    """The full names of an address's documents."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.jobs = f"{address.root}/{address.collection}"
        self.workers = f"{address.root}/{address.collection}_workers"
        self.garbage = f"{address.root}/{address.collection}_garbage"

    def job(self, key: JobKey) -> str:
        """The job's document."""
        return f"{self.jobs}/{job_id_of(key)}"

    def run(self, ref: JobRef) -> str:
        """The parent of what belongs to one incarnation alone: tallies, and the cells of its callbacks."""
        return f"{self.job(ref.key)}/runs/{ref.incarnation}"

    def cell(self, ref: JobRef, tag: str, task_index: int) -> str:
        """A cell's document; those of callbacks lie apart, where no reader of the grid looks."""
        parent = self.run(ref) if task_index <= CALLBACK_ROW else self.job(ref.key)
        return f"{parent}/states/{cell_id_of(tag, task_index)}"

    def tally(self, ref: JobRef, tag: str, shard: int) -> str:
        """The document of a column's tally over some of its rows."""
        return f"{self.run(ref)}/tallies/{cell_id_of(tag, shard)}"

    def worker(self, worker_id: str) -> str:
        """A worker's record."""
        return f"{self.workers}/{_fitting('worker_id', _whole(_escaped(worker_id)))}"
