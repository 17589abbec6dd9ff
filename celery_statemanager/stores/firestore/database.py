"""Reads and commits of documents, independent of jobs and cells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from celery_statemanager.errors import StoreError
from celery_statemanager.stores.firestore import requests
from celery_statemanager.stores.firestore.client import Connection
from celery_statemanager.stores.firestore.errors import CallDeadline
from celery_statemanager.stores.firestore.names import DocumentNames
from celery_statemanager.stores.firestore.timings import Timings
from celery_statemanager.stores.firestore.values import decode, decode_fields, microseconds

MAX_DOCUMENT_SIZE = 1_000_000
"""Bytes. Firestore's limit is 1 MiB, including names and index overhead."""

PAGE = 300
"""Documents in one page of a query."""


class Document(NamedTuple):
    """A decoded document."""

    name: str
    fields: dict[str, Any]
    update_time: Any
    create_time: Any

    @property
    def id(self) -> str:
        """The last part of the name."""
        return self.name.rpartition("/")[2]


class BatchRead(NamedTuple):
    """Documents by name, as of one time."""

    documents: dict[str, Document]
    read_time: Any


class Database:
    """Reads and writes documents at one address.

    Attributes:
        committed: the time of this process's last commit, in nanoseconds.
    """

    def __init__(self, connection: Connection, names: DocumentNames, timings: Timings) -> None:
        self.connection = connection
        self.names = names
        self.timings = timings
        self.path = connection.address.database_path
        self.clock = connection.clock
        self.committed = 0

    def deadline(self) -> CallDeadline:
        """Return a new deadline for one call of the store."""
        return self.connection.deadline()

    def get(self, names: Iterable[str], deadline: CallDeadline, *, at: Any = None) -> BatchRead:
        """Read documents by name, all as of the same time. The result omits documents that do not exist."""
        request = requests.get(self.path, dict.fromkeys(names), at=at)
        responses = self.connection.read("batch_get_documents", request, deadline)
        existing = [response.found for response in responses if response.HasField("found")]
        read_time = max((response.read_time for response in responses), key=nanoseconds)
        self.clock.learn(microseconds(read_time))
        return BatchRead({message.name: document_of(message) for message in existing}, read_time)

    def query(self, parent: str, structured: Any, deadline: CallDeadline, *, at: Any = None) -> list[Document]:
        """Run a query and return all its documents."""
        responses = self.connection.read("run_query", requests.run(parent, structured, at=at), deadline)
        return [document_of(response.document) for response in responses if response.HasField("document")]

    def pages(
        self,
        parent: str,
        collection: str,
        *filters: requests.Filter,
        at: Any = None,
        everywhere: bool = False,
        size: int = PAGE,
    ) -> Iterator[Document]:
        """Yield the documents of a query, ordered by name. Each page has its own deadline.

        Args:
            everywhere: query all collections of this name below the parent.
        """
        after: tuple[Any, ...] = ()
        while True:
            structured = requests.select(
                collection, *filters, order=("__name__",), limit=size, after=after, everywhere=everywhere
            )
            page = self.query(parent, structured, self.deadline(), at=at)
            yield from page
            if len(page) < size:
                return
            after = (requests.Reference(page[-1].name),)

    def sums(
        self,
        parent: str,
        structured: Any,
        paths: Sequence[str],
        deadline: CallDeadline,
        *,
        count: bool = False,
        at: Any = None,
    ) -> dict[str, int]:
        """Sum fields over the documents of a query, and count them if ``count`` is set."""
        request = requests.aggregate(parent, structured, paths, count=count, at=at)
        (response,) = self.connection.read("run_aggregation_query", request, deadline)
        fields = response.result.aggregate_fields
        return {alias: int(decode(fields[alias]) or 0) for alias in fields}

    def commit(self, writes: Sequence[Any], deadline: CallDeadline) -> Any:
        """Apply all writes or none, in a single try. Raises: PreconditionFailed, Transient, StoreError."""
        check_sizes(writes)
        response = self.connection.once("commit", requests.commit(self.path, writes), deadline)
        self.clock.learn(microseconds(response.commit_time))
        self.committed = max(self.committed, nanoseconds(response.commit_time))
        return response

    def retry(self, writes: Sequence[Any], deadline: CallDeadline) -> Any:
        """Apply idempotent writes, with retries. Raises: PreconditionFailed, StoreUnavailable, StoreError."""
        return deadline.retry(lambda: self.commit(writes, deadline))

    def now(self) -> int:
        """Return the server's time. If no answer has carried it yet, make a call to learn it."""
        if not self.clock.known:
            self.get([f"{self.names.jobs}/%"], self.deadline())
        return self.clock.now()


def document_of(message: Any) -> Document:
    """Decode a document."""
    return Document(message.name, decode_fields(message.fields), message.update_time, message.create_time)


def check_sizes(writes: Iterable[Any]) -> None:
    """Raise StoreError if a document is too large, before Firestore rejects it or a client resends it endlessly."""
    for each in writes:
        size = each.update.ByteSize()
        if size > MAX_DOCUMENT_SIZE:
            raise StoreError(
                f"{each.update.name.rpartition('/')[2]!r} takes {size} bytes as a document, but Firestore allows "
                f"{MAX_DOCUMENT_SIZE}; keep large data elsewhere and put its address in the payload"
            )


def nanoseconds(timestamp: Any) -> int:
    """Convert a protocol buffer timestamp to nanoseconds since the epoch."""
    return int(timestamp.seconds) * 1_000_000_000 + int(timestamp.nanos)
