"""Reads and writes of documents, without a notion of jobs and cells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from celery_statemanager.errors import StoreError
from celery_statemanager.stores.firestore import requests
from celery_statemanager.stores.firestore.client import Connection
from celery_statemanager.stores.firestore.errors import Deadline
from celery_statemanager.stores.firestore.names import Names
from celery_statemanager.stores.firestore.timings import Timings
from celery_statemanager.stores.firestore.values import decode, decoded, microseconds

LARGEST_DOCUMENT = 1_000_000
"""Bytes; Firestore's limit is 1 MiB with names and index overhead."""
PAGE = 300


class Found(NamedTuple):
    """A document that was read.

    Attributes:
        stamp: when it was last written; ``made`` is when it was created.
    """

    name: str
    fields: dict[str, Any]
    stamp: Any
    made: Any

    @property
    def id(self) -> str:
        """The last part of its name."""
        return self.name.rpartition("/")[2]


class Got(NamedTuple):
    """What a read of several documents gave, and the moment it is as of."""

    documents: dict[str, Found]
    at: Any


def found(document: Any) -> Found:
    """Read a document."""
    return Found(document.name, decoded(document.fields), document.update_time, document.create_time)


class Database:
    """The documents of one address.

    Attributes:
        committed: the time of this process's last commit, in nanoseconds.
    """

    def __init__(self, connection: Connection, names: Names, timings: Timings) -> None:
        self.connection = connection
        self.names = names
        self.timings = timings
        self.path = connection.address.database_path
        self.clock = connection.clock
        self.committed = 0

    def deadline(self) -> Deadline:
        """Give the time that one call of the store may take."""
        return self.connection.deadline()

    def get(self, names: Iterable[str], deadline: Deadline, *, at: Any = None) -> Got:
        """Read documents as of one moment; missing ones are left out."""
        request = requests.get(self.path, dict.fromkeys(names), at=at)
        answers = self.connection.read("batch_get_documents", request, deadline)
        there = [answer.found for answer in answers if answer.HasField("found")]
        moment = max((answer.read_time for answer in answers), key=nanoseconds)
        self.clock.learn(microseconds(moment))
        return Got({each.name: found(each) for each in there}, moment)

    def query(self, parent: str, structured: Any, deadline: Deadline, *, at: Any = None) -> list[Found]:
        """Run a query to its end."""
        answers = self.connection.read("run_query", requests.run(parent, structured, at=at), deadline)
        return [found(answer.document) for answer in answers if answer.HasField("document")]

    def pages(
        self,
        parent: str,
        collection: str,
        *filters: requests.Filter,
        at: Any = None,
        everywhere: bool = False,
        size: int = PAGE,
    ) -> Iterator[Found]:
        """Run a query in the order of the documents' names, page by page, each with a deadline of its own.

        Args:
            everywhere: in all collections of the name below the parent.
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
        deadline: Deadline,
        *,
        count: bool = False,
        at: Any = None,
    ) -> dict[str, int]:
        """Sum fields over what a query finds."""
        request = requests.aggregate(parent, structured, paths, count=count, at=at)
        (answer,) = self.connection.read("run_aggregation_query", request, deadline)
        fields = answer.result.aggregate_fields
        return {alias: int(decode(fields[alias]) or 0) for alias in fields}

    def commit(self, writes: Sequence[Any], deadline: Deadline) -> Any:
        """Do all of it or nothing, in one try. Raises: PreconditionFailed, Transient, StoreError."""
        check_sizes(writes)
        answer = self.connection.once("commit", requests.commit(self.path, writes), deadline)
        done_at = answer.commit_time
        self.clock.learn(microseconds(done_at))
        self.committed = max(self.committed, nanoseconds(done_at))
        return answer

    def retry(self, writes: Sequence[Any], deadline: Deadline) -> Any:
        """Do what may be done twice, until it is done. Raises: PreconditionFailed, StoreUnavailable, StoreError."""
        return deadline.retry(lambda: self.commit(writes, deadline))

    def now(self) -> int:
        """Give the server's time, asking for it only if no answer has told it yet."""
        if not self.clock.known:
            self.get([f"{self.names.jobs}/%"], self.deadline())
        return self.clock.now()


def check_sizes(writes: Iterable[Any]) -> None:
    """Refuse what Firestore would refuse, or worse, what a client would send again and again. Raises: StoreError."""
    for each in writes:
        size = each.update.ByteSize()
        if size > LARGEST_DOCUMENT:
            raise StoreError(
                f"{each.update.name.rpartition('/')[2]!r} takes {size} bytes as a document, Firestore allows "
                f"{LARGEST_DOCUMENT}: keep large data elsewhere and put its address in the payload"
            )


def nanoseconds(stamp: Any) -> int:
    """Give a timestamp as one number."""
    return int(stamp.seconds) * 1_000_000_000 + int(stamp.nanos)
