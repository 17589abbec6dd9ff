"""Helpers for tests of the Firestore store: a client that counts and loses calls, and direct access to documents."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc
from google.api_core.exceptions import ServiceUnavailable
from google.api_core.retry import Retry, if_exception_type
from google.cloud.firestore_v1.services.firestore import FirestoreClient
from google.cloud.firestore_v1.services.firestore.transports import FirestoreGrpcTransport
from google.cloud.firestore_v1.types import firestore

from celery_statemanager.stores.base import Watch
from celery_statemanager.stores.firestore import FirestoreAddress, FirestoreStore, requests
from celery_statemanager.stores.firestore.transports import GrpcClient, Transport, grpc_channel
from celery_statemanager.stores.firestore.values import decode_fields
from celery_statemanager.stores.firestore.watch import FirestoreWatch
from celery_statemanager.subscription import Subscription
from celery_statemanager.testing.kit import PATIENCE

PATIENT = Retry(predicate=if_exception_type(ServiceUnavailable), timeout=60.0)
"""Retry while the emulator does not accept the connection."""


class InjectedError(grpc.RpcError, grpc.Call):
    """A gRPC error that a test injects."""

    def __init__(self, code: grpc.StatusCode, details: str = "injected by a test") -> None:
        super().__init__()
        self._code = code
        self._details = details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[()]:
        return ()

    initial_metadata = trailing_metadata

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> None:
        return None

    def cancel(self) -> bool:
        return False

    def result(self, timeout: float | None = None) -> None:
        raise self

    def __iter__(self) -> InjectedError:
        return self

    def __next__(self) -> None:
        raise self

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return False


class AlteredCall:
    """A streaming call whose messages pass through a generator."""

    def __init__(self, call: Any, alter: Callable[[Any], Iterator[Any]]) -> None:
        self._call = call
        self._messages = alter(call)

    def __iter__(self) -> AlteredCall:
        return self

    def __next__(self) -> Any:
        return next(self._messages)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


class Spy(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Counts calls by method, and documents read and written, as Firestore bills them.

    ``fault`` may lose a call before or after it is applied, with a code and the server's message. The messages of
    Listen pass through ``alter``.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.reads = self.writes = 0
        self.lost = 0
        self.requests: list[Any] = []
        self.fault: Callable[[str, Any], tuple[Any, ...] | None] = lambda method, request: None
        self.alter: Callable[[Any], Iterator[Any]] = iter
        self.lock = threading.Lock()

    def clear(self) -> None:
        self.calls.clear()
        self.requests.clear()
        self.reads = self.writes = 0

    @property
    def total(self) -> int:
        return sum(self.calls.values())

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return self._pass(continuation, details, request)

    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return AlteredCall(self._pass(continuation, details, request), self._reading)

    def _reading(self, messages: Any) -> Iterator[Any]:
        """Count the documents of a stream, found or missing; a sum or an empty response counts as one."""
        read = 0
        for message in messages:
            kinds = {field.name for field, _ in message.ListFields()}
            read += bool(kinds & {"document", "found", "missing"})
            yield message
        self.reads += max(read, 1)

    def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        with self.lock:
            self.calls["Listen"] += 1
            fault = self.fault("Listen", requests)
        if fault is not None:
            return InjectedError(*fault[1:])
        return AlteredCall(continuation(details, requests), lambda call: self.alter(call))

    def _pass(self, continuation: Any, details: Any, request: Any) -> Any:
        method = details.method.rpartition("/")[2]
        with self.lock:
            self.calls[method] += 1
            self.requests.append(request)
            if method == "Commit":
                self.writes += len(request.writes)
            fault = self.fault(method, request)
        if fault is None:
            return continuation(details, request)
        when, *error = fault
        self.lost += 1
        if when == "after":
            answer = continuation(details, request)
            if method == "Commit":
                answer.exception()
            else:
                list(answer)
        return InjectedError(*error)

    def writes_of(self, path: str) -> int:
        """Return how often documents whose name ends with a path were written or deleted."""
        return sum(name.endswith(path) for request in self.requests for name in written(request))

    def client(self, address: FirestoreAddress, transport: Transport) -> GrpcClient:
        return GrpcClient(grpc.intercept_channel(grpc_channel(address), self))

    def store(self, address: FirestoreAddress, timeout: float = 10.0, **options: Any) -> FirestoreStore:
        return FirestoreStore(address, timeout=timeout, make_client=self.client, **options)


def wait_until_streaming(watch: Watch) -> None:
    """Wait until the stream of a watch is open, because the emulator may lose changes made while it opens one."""
    assert isinstance(watch, FirestoreWatch)
    with watch._changed:
        assert watch._changed.wait_for(lambda: watch._complete, PATIENCE)


@contextmanager
def listening(events: Subscription) -> Iterator[Subscription]:
    """Yield a subscription whose stream is open, and close it."""
    with events:
        wait_until_streaming(events._feed._watch)
        yield events


def written(request: Any) -> list[str]:
    """Return the names of the documents that a commit writes or deletes."""
    return [each.update.name or each.delete for each in getattr(request, "writes", ())]


@contextmanager
def just_before_commits_of(spy: Spy, path: str, action: Callable[[], object]) -> Iterator[None]:
    """Run an action once, between what the next commit of a document was computed from and the commit."""
    left = [action]

    def fault(method: str, request: Any) -> None:
        if method == "Commit" and any(name.endswith(path) for name in written(request)) and left:
            left.pop()()

    spy.fault = fault
    yield
    assert not left, f"{path} was not written"
    spy.fault = lambda method, request: None


class Documents:
    """Direct access to the documents of an address."""

    def __init__(self, store: FirestoreStore) -> None:
        self.address = store._connection.address
        self.client = FirestoreClient(transport=FirestoreGrpcTransport(channel=grpc_channel(self.address)))

    def name(self, path: str) -> str:
        return f"{self.address.root}/{path}"

    def put(self, path: str, **fields: Any) -> None:
        self.put_all({path: fields})

    def put_all(self, documents: Mapping[str, Mapping[str, Any]]) -> None:
        """Overwrite documents in one commit."""
        self._commit([requests.overwrite(self.name(path), fields) for path, fields in documents.items()])

    def touch(self, path: str, **fields: Any) -> None:
        """Set some fields of an existing document."""
        self._commit([requests.touch(self.name(path), fields)])

    def delete(self, path: str) -> None:
        self._commit([requests.delete(self.name(path))])

    def _commit(self, writes: list[Any]) -> None:
        request = requests.commit(self.address.database_path, writes)
        self.client.commit(firestore.CommitRequest.wrap(request), retry=PATIENT, timeout=60)

    def get(self, path: str) -> dict[str, Any]:
        request = firestore.GetDocumentRequest(name=self.name(path))
        answer = self.client.get_document(request, retry=PATIENT, timeout=60)
        return decode_fields(type(answer).pb(answer).fields)

    def ids(self, collection: str) -> list[str]:
        parent, _, last = self.name(collection).rpartition("/")
        request = firestore.ListDocumentsRequest(parent=parent, collection_id=last)
        return [each.name.rpartition("/")[2] for each in self.client.list_documents(request, retry=PATIENT, timeout=60)]
