"""Names of documents. Plain names of jobs and cells become plain ids; others are encoded reversibly. Pure."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from urllib.parse import unquote

from celery_statemanager.errors import StoreError
from celery_statemanager.records import CALLBACK_ROW, JobKey, JobRef
from celery_statemanager.stores.firestore.address import FirestoreAddress

MAX_ID_LENGTH = 1_500
"""Firestore's limit for an id, in bytes."""

MAX_CACHED_IDS = 10_000

_RERUN = "%+"
_HASHED = "%#"


@lru_cache(MAX_CACHED_IDS)
def job_id_of(key: JobKey) -> str:
    """Return the id of a job's document: ``JOB``, or ``JOB%+TOKEN`` for a job with a run token.

    Raises: StoreError – the job id or the run token alone is too long for an id.
    """
    job = _checked_length("job_id", _escape(key.job_id))
    if key.run_token is None:
        return _checked_length("job_id", _escape_reserved(job))
    joined = _escape_reserved(f"{job}{_RERUN}{_checked_length('run_token', _escape(key.run_token))}")
    if len(joined.encode()) <= MAX_ID_LENGTH:
        return joined
    return _HASHED + hashlib.sha256(joined.encode()).hexdigest()


@lru_cache(MAX_CACHED_IDS)
def cell_id_of(tag: str, task_index: int) -> str:
    """Return the id of a cell's document, ``{tag}:{taskID}``. A tag may contain colons."""
    return _checked_length("tag", f"{_escape(tag)}:{task_index}")


def cell_key_of(cell_id: str) -> tuple[str, int]:
    """Decode the tag and the row from a cell's document id."""
    tag, _, row = cell_id.rpartition(":")
    return unquote(tag), int(row)


def publisher_of(claim_id: str) -> str:
    """Decode the publisher from the document id of its claim."""
    return unquote(claim_id)


def _plain_id_of(kind: str, name: str) -> str:
    return _checked_length(kind, _escape_reserved(_escape(name)))


def _escape_reserved(escaped: str) -> str:
    """Encode the ids that Firestore reserves: ``.``, ``..`` and ``__x__``."""
    if escaped in {".", ".."} or re.fullmatch(r"__.*__", escaped, re.DOTALL):
        return f"%{ord(escaped[0]):02X}{escaped[1:]}"
    return escaped


def _escape(name: str) -> str:
    """Encode ``/``, which no id may contain, and ``%``, which the encoding uses."""
    return name.replace("%", "%25").replace("/", "%2F")


def _checked_length(kind: str, name: str) -> str:
    size = len(name.encode())
    if size > MAX_ID_LENGTH:
        raise StoreError(
            f"{kind} takes {size} bytes as a document id, but Firestore allows {MAX_ID_LENGTH}; "
            f"choose a shorter one than {name[:60]!r}…"
        )
    return name


class DocumentNames:
    """Builds the full names of the documents at an address."""

    def __init__(self, address: FirestoreAddress) -> None:
        self.address = address
        self.jobs = f"{address.root}/{address.collection}"
        self.workers = f"{address.root}/{address.collection}_workers"
        self.garbage = f"{address.root}/{address.collection}_garbage"
        self.drafts = f"{address.root}/{address.collection}_drafts"

    def job(self, key: JobKey) -> str:
        """Return the name of a job's document."""
        return f"{self.jobs}/{job_id_of(key)}"

    def run(self, ref: JobRef) -> str:
        """Return the parent of all documents of one incarnation except the cells of its grid."""
        return f"{self.job(ref.key)}/runs/{ref.incarnation}"

    def cell(self, ref: JobRef, tag: str, task_index: int) -> str:
        """Return the name of a cell's document. Callback runs are stored apart from the grid."""
        parent = self.run(ref) if task_index <= CALLBACK_ROW else self.job(ref.key)
        return f"{parent}/states/{cell_id_of(tag, task_index)}"

    def tally(self, ref: JobRef, tag: str, shard: int) -> str:
        """Return the name of one shard of a column's tally."""
        return f"{self.run(ref)}/tallies/{cell_id_of(tag, shard)}"

    def block(self, ref: JobRef, first: int, part: int = 0) -> str:
        """Return the name of one part of a block of messages."""
        return f"{self.run(ref)}/blocks/{first}{f'.{part}' if part else ''}"

    def draft(self, incarnation: str) -> str:
        """Return the name of the document that exists until a job with messages is created."""
        return f"{self.drafts}/{incarnation}"

    def outbox(self, ref: JobRef) -> str:
        """Return the name of the document with the claims of a job."""
        return f"{self.run(ref)}/outbox/state"

    def claim(self, ref: JobRef, publisher: str) -> str:
        """Return the name of the document with a row whose stage a publisher has finished."""
        return f"{self.run(ref)}/claims/{_plain_id_of('publisher', publisher)}"

    def returned(self, ref: JobRef, row: int) -> str:
        """Return the name of the document that exists while a row is returned."""
        return f"{self.run(ref)}/returned/{row}"

    def value(self, ref: JobRef, row: int) -> str:
        """Return the name of the document with the value of a row."""
        return f"{self.run(ref)}/values/{row}"

    def worker(self, worker_id: str) -> str:
        """Return the name of a worker's record."""
        return f"{self.workers}/{_plain_id_of('worker_id', worker_id)}"
