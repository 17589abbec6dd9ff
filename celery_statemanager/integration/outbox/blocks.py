"""The messages of a job's rows in compressed blocks, which a store keeps apart from the cells.

Each line of a block is the JSON text of one row: a list with the message of each stage.
"""

from __future__ import annotations

import threading
import zlib

from celery_statemanager.errors import StoreError
from celery_statemanager.integration.outbox.envelope import Envelope, messages_from_json
from celery_statemanager.records import JobRef
from celery_statemanager.stores.capabilities import JobCreator, Outbox
from celery_statemanager.stores.forking import fork_aware

BLOCK_BYTES = 256 * 1024
"""Size of a block in bytes before its compression. A larger one would compress little better."""

CACHED_BLOCKS = 16

DRAFT_LEASE = 6 * 3_600.0
"""Seconds for which the blocks of a job that is being submitted are kept. A generator of members may be slow."""

_LEVEL = 1
"""The level of compression. Higher levels take more than twice the time, and save a tenth of the bytes."""


class BlockWriter:
    """Stores the messages of a job that does not exist yet, in row order and bounded memory."""

    def __init__(self, store: JobCreator, ref: JobRef) -> None:
        self._store = store
        self._ref = ref
        self._first = self._size = 0
        self._entries: list[str] = []

    def add(self, line: str) -> None:
        """Add the line of the next row. Raises: StoreError."""
        self._entries.append(line)
        self._size += len(line)
        if self._size >= BLOCK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Store the messages added last. Raises: StoreError."""
        if self._entries:
            data = zlib.compress("\n".join(self._entries).encode(), _LEVEL)
            self._store.add_block(self._ref, self._first, data, DRAFT_LEASE)
            self._first += len(self._entries)
            self._entries, self._size = [], 0


class BlockCache:
    """Reads messages of jobs, and keeps the blocks that it has used last. Thread-safe.

    The end of each row of a job with a limited number of rows in flight reads the message of another row.
    """

    def __init__(self) -> None:
        self._blocks: dict[tuple[JobRef, int], list[bytes]] = {}
        self._lock = threading.Lock()
        fork_aware(self)

    def before_fork(self) -> None:
        """Wait until no thread uses the cache, so that it is usable in the child."""
        self._lock.acquire()

    def after_fork(self) -> None:
        """Allow the use of the cache again."""
        self._lock.release()

    def messages(self, store: Outbox, ref: JobRef, row: int) -> list[Envelope]:
        """Return the message of each stage of a row. Raises: StoreError."""
        first, lines = self._cached(ref, row) or self._read(store, ref, row)
        return messages_from_json(lines[row - first].decode())

    def _cached(self, ref: JobRef, row: int) -> tuple[int, list[bytes]] | None:
        with self._lock:
            for key, lines in self._blocks.items():
                if key[0] == ref and 0 <= row - key[1] < len(lines):
                    self._blocks[key] = self._blocks.pop(key)  # the last one is removed last
                    return key[1], lines
        return None

    def _read(self, store: Outbox, ref: JobRef, row: int) -> tuple[int, list[bytes]]:
        found = store.get_block(ref, row)
        try:
            lines = zlib.decompress(found[1]).split(b"\n") if found else []
        except zlib.error as error:
            advice = "cancel the job, and submit its tasks again under a new run_token"
            text = f"the message of row {row} of job {ref.key.job_id!r} is damaged ({error}): {advice}"
            raise StoreError(text) from error
        if found is None or row - found[0] >= len(lines):
            raise StoreError(f"the message of row {row} of job {ref.key.job_id!r} is not in the store")
        with self._lock:
            self._blocks[ref, found[0]] = lines
            while len(self._blocks) > CACHED_BLOCKS:
                del self._blocks[next(iter(self._blocks))]
        return found[0], lines
