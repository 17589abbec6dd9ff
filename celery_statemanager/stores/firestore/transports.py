"""The transports to Firestore: gRPC, which streams changes, and REST, which a process may use while it forks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import quote

import grpc
from google.api_core import exceptions
from google.api_core.gapic_v1 import client_info, routing_header
from google.auth import default as default_credentials
from google.auth import exceptions as auth_errors
from google.auth.credentials import AnonymousCredentials
from google.auth.transport.requests import AuthorizedSession, Request
from google.cloud.firestore_v1.services.firestore.transports import FirestoreGrpcTransport
from google.cloud.firestore_v1.types import firestore
from google.protobuf import json_format
from requests.adapters import HTTPAdapter

from celery_statemanager.errors import StoreError
from celery_statemanager.stores.firestore.address import EMULATOR_VARIABLE, FirestoreAddress, emulator

Metadata = tuple[tuple[str, str], ...]
Transport = Literal["grpc", "rest"]

SERVICE = "https://firestore.googleapis.com"

_GRPC_SERVICE = "/google.firestore.v1.Firestore"
_SCOPES = ("https://www.googleapis.com/auth/datastore",)
_CLIENT_INFO = client_info.ClientInfo().to_grpc_metadata()  # type: ignore[no-untyped-call]
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.use_local_subchannel_pool", 1),
)
_MOST_CONNECTIONS = 1_000
"""Idle connections of a REST client that are kept. With fewer than a worker has greenlets, calls would reconnect."""

_METADATA_SERVER_TIMEOUT = 3.0
"""Seconds; about 6 with the library's pauses between its tries. The library's own limit is 12."""


class GrpcClient:
    """Makes the calls over gRPC. Requests and responses are bare protocol buffers.

    Raises: GoogleAPICallError, from each call and while a stream is read.
    """

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._commit = _method(channel.unary_unary, "Commit")
        self._get = _method(channel.unary_stream, "BatchGetDocuments")
        self._query = _method(channel.unary_stream, "RunQuery")
        self._aggregate = _method(channel.unary_stream, "RunAggregationQuery")
        self._listen = _method(channel.stream_stream, "Listen")

    def commit(self, request: Any, *, timeout: float, metadata: Metadata = ()) -> Any:
        try:
            return self._commit(request, timeout, _with_route(metadata, database=request.database))
        except grpc.RpcError as error:
            raise _api_error(error) from error

    def batch_get_documents(self, request: Any, *, timeout: float, metadata: Metadata = ()) -> list[Any]:
        return list(ResponseStream(self._get(request, timeout, _with_route(metadata, database=request.database))))

    def run_query(self, request: Any, *, timeout: float, metadata: Metadata = ()) -> list[Any]:
        return list(ResponseStream(self._query(request, timeout, _with_route(metadata, parent=request.parent))))

    def run_aggregation_query(self, request: Any, *, timeout: float, metadata: Metadata = ()) -> list[Any]:
        return list(ResponseStream(self._aggregate(request, timeout, _with_route(metadata, parent=request.parent))))

    def listen(self, requests: Iterator[Any], *, metadata: Metadata = ()) -> ResponseStream:
        return ResponseStream(self._listen(requests, None, (*metadata, _CLIENT_INFO)))

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


class ResponseStream:
    """The responses of a streaming call, to be read once. Any thread may call ``cancel`` to end it."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._call
        except grpc.RpcError as error:
            raise _api_error(error) from error

    def cancel(self) -> None:
        self._call.cancel()


def _method(make: Any, name: str) -> Any:
    request, response = getattr(firestore, f"{name}Request"), getattr(firestore, f"{name}Response")
    return make(f"{_GRPC_SERVICE}/{name}", request.pb().SerializeToString, response.pb().FromString)


@lru_cache(maxsize=1_000)
def _with_route(metadata: Metadata, **field: str) -> Metadata:
    """Add the metadata by which the service routes a call and identifies the client library."""
    return (*metadata, routing_header.to_grpc_metadata(field), _CLIENT_INFO)  # type: ignore[no-untyped-call]


def _api_error(error: grpc.RpcError) -> Exception:
    api_error: Exception = exceptions.from_grpc_error(error)  # type: ignore[no-untyped-call]
    return api_error


class RestClient:
    """Makes the calls over REST, with the methods, requests, responses and errors of ``GrpcClient``.

    Args:
        session: a ``requests`` session that adds the credentials.
        base: scheme and host.
    """

    def __init__(self, session: Any, base: str) -> None:
        self._session = session
        self._base = base

    def commit(self, request: Any, **options: Any) -> Any:
        return self._call(f"{request.database}/documents", "commit", request, firestore.CommitResponse, **options)[0]

    def batch_get_documents(self, request: Any, **options: Any) -> Any:
        path = f"{request.database}/documents"
        return self._call(path, "batchGet", request, firestore.BatchGetDocumentsResponse, **options)

    def run_query(self, request: Any, **options: Any) -> Any:
        return self._call(request.parent, "runQuery", request, firestore.RunQueryResponse, **options)

    def run_aggregation_query(self, request: Any, **options: Any) -> Any:
        kind = firestore.RunAggregationQueryResponse
        return self._call(request.parent, "runAggregationQuery", request, kind, **options)

    def listen(self, requests: Any, **options: Any) -> Any:
        raise exceptions.MethodNotImplemented("REST has no streams")  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _call(
        self,
        path: str,
        verb: str,
        request: Any,
        kind: Any,
        *,
        timeout: float,
        metadata: Metadata = (),
    ) -> list[Any]:
        """Return the responses, one if the call is not streamed. Raises: GoogleAPICallError, RequestException."""
        http_response = self._session.post(
            f"{self._base}/v1/{quote(path)}:{verb}",
            json=json_format.MessageToDict(request),
            headers=dict(metadata),
            timeout=timeout,
            max_allowed_time=timeout,
        )
        status = http_response.status_code
        try:
            content = http_response.json()
        except ValueError as error:  # an error page of a proxy
            text = http_response.text[:200] or "empty response"
            raise exceptions.from_http_status(status, text) from error  # type: ignore[no-untyped-call]
        messages = content if isinstance(content, list) else [content]
        for message in messages:
            _raise_for_error(message, status)
        return [json_format.ParseDict(message, kind.pb()(), ignore_unknown_fields=True) for message in messages]


def _raise_for_error(message: Any, http_status: int) -> None:
    """Raise the error that gRPC would raise. The HTTP status is the same for contention and an existing document."""
    error = message.get("error") if isinstance(message, dict) else {"message": str(message)[:200]}
    if error is None:
        return
    code = getattr(grpc.StatusCode, error.get("status", ""), None)
    text = error.get("message", "")
    if code is None:
        raise exceptions.from_http_status(http_status, text)  # type: ignore[no-untyped-call]
    raise exceptions.from_grpc_status(code, text)  # type: ignore[no-untyped-call]


Client = GrpcClient | RestClient
ClientFactory = Callable[[FirestoreAddress, Transport], Client]
"""Creates a client in the process that uses it."""


def make_client(address: FirestoreAddress, transport: Transport) -> Client:
    """Create a client of the emulator if the environment names one, else of the service. Raises: StoreError."""
    if transport == "rest":
        return rest_client(address)
    return GrpcClient(grpc_channel(address))


def metadata_of(address: FirestoreAddress) -> Metadata:
    """Return the metadata of each call: the database and, for an emulator, a token that bypasses its rules."""
    database = ("google-cloud-resource-prefix", address.database_path)
    return (database, ("authorization", "Bearer owner")) if emulator() else (database,)


def grpc_channel(address: FirestoreAddress) -> grpc.Channel:
    """Open a gRPC channel. Raises: StoreError."""
    host = emulator()
    if host is not None:
        return grpc.insecure_channel(host, options=_CHANNEL_OPTIONS)
    credentials = _credentials(address)
    channel: grpc.Channel = FirestoreGrpcTransport.create_channel(credentials=credentials, options=_CHANNEL_OPTIONS)
    return channel


def rest_client(address: FirestoreAddress) -> RestClient:
    """Create a REST client. Raises: StoreError."""
    host = emulator()
    credentials = _credentials(address) if host is None else AnonymousCredentials()  # type: ignore[no-untyped-call]
    session = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
    base = SERVICE if host is None else f"http://{host}"
    session.mount(base, HTTPAdapter(pool_maxsize=_MOST_CONNECTIONS))
    return RestClient(session, base)


def _credentials(address: FirestoreAddress) -> Any:
    try:
        return default_credentials(scopes=_SCOPES, request=_TimeLimitedRequest())[0]
    except auth_errors.DefaultCredentialsError as error:
        reason = str(error).partition(". ")[0]
        raise StoreError(
            f"no credentials for {address} ({reason}): run `gcloud auth application-default login`, set "
            f"GOOGLE_APPLICATION_CREDENTIALS to a key file, or set {EMULATOR_VARIABLE} to use an emulator"
        ) from error


class _TimeLimitedRequest(Request):
    """Requests credentials from the metadata server within one time limit for all tries."""

    def __init__(self) -> None:
        super().__init__()
        self._end = time.monotonic() + _METADATA_SERVER_TIMEOUT

    def __call__(self, *args: Any, **options: Any) -> Any:
        left = self._end - time.monotonic()
        if left <= 0:
            raise auth_errors.TransportError("no metadata server answers")  # type: ignore[no-untyped-call]
        options["timeout"] = min(options.get("timeout") or left, left)
        return super().__call__(*args, **options)  # type: ignore[no-untyped-call]
