"""Ways to reach Firestore: gRPC, which streams changes, and REST, which a process may use while it forks."""

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

from celery_statemanager.errors import StoreError
from celery_statemanager.stores.firestore.address import Address, emulator

Metadata = tuple[tuple[str, str], ...]

SERVICE = "https://firestore.googleapis.com"
_GRPC_SERVICE = "/google.firestore.v1.Firestore"
_ABOUT_US = client_info.ClientInfo().to_grpc_metadata()  # type: ignore[no-untyped-call]


class GrpcClient:
    """Makes the calls, with and without a stream of responses. Messages are bare protocol buffers.

    Raises: GoogleAPICallError, from each call and from reading a stream.
    """

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._commit = _method(channel.unary_unary, "Commit", firestore.CommitRequest, firestore.CommitResponse)
        self._get = _method(
            channel.unary_stream,
            "BatchGetDocuments",
            firestore.BatchGetDocumentsRequest,
            firestore.BatchGetDocumentsResponse,
        )
        self._query = _method(channel.unary_stream, "RunQuery", firestore.RunQueryRequest, firestore.RunQueryResponse)
        self._aggregate = _method(
            channel.unary_stream,
            "RunAggregationQuery",
            firestore.RunAggregationQueryRequest,
            firestore.RunAggregationQueryResponse,
        )
        self._listen = _method(channel.stream_stream, "Listen", firestore.ListenRequest, firestore.ListenResponse)

    def commit(self, request: Any, *, timeout: float, metadata: Metadata = ()) -> Any:
        try:
            return self._commit(request, timeout, _with_route(metadata, database=request.database))
        except grpc.RpcError as error:
            raise _named(error) from error

    def batch_get_documents(self, request: Any, *, timeout: float, metadata: Metadata = ()) -> list[Any]:
        return _all(self._get(request, timeout, _with_route(metadata, database=request.database)))

    def run_query(self, request: Any, *, timeout: float, metadata: Metadata = ()) -> list[Any]:
        return _all(self._query(request, timeout, _with_route(metadata, parent=request.parent)))

    def run_aggregation_query(self, request: Any, *, timeout: float, metadata: Metadata = ()) -> list[Any]:
        return _all(self._aggregate(request, timeout, _with_route(metadata, parent=request.parent)))

    def listen(self, requests: Iterator[Any], *, metadata: Metadata = ()) -> Responses:
        return Responses(self._listen(requests, None, (*metadata, _ABOUT_US)))

    def close(self) -> None:
        """Let go of the connection."""
        self._channel.close()


class Responses:
    """A stream's responses, to be read once; ``cancel`` ends it, from any thread."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._call
        except grpc.RpcError as error:
            raise _named(error) from error

    def cancel(self) -> None:
        self._call.cancel()


def _method(make: Any, name: str, request: Any, response: Any) -> Any:
    return make(f"{_GRPC_SERVICE}/{name}", request.pb().SerializeToString, response.pb().FromString)


@lru_cache(maxsize=1_000)
def _with_route(metadata: Metadata, **field: str) -> Metadata:
    """Add what the service routes a call by, and what it counts clients by."""
    return (*metadata, routing_header.to_grpc_metadata(field), _ABOUT_US)  # type: ignore[no-untyped-call]


def _all(call: Any) -> list[Any]:
    return list(Responses(call))


def _named(error: grpc.RpcError) -> Exception:
    named: Exception = exceptions.from_grpc_error(error)  # type: ignore[no-untyped-call]
    return named


class RestClient:
    """Stands in for ``GrpcClient``: the same names, requests, responses and errors.

    Args:
        session: a ``requests`` session that signs what it sends.
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
        raise exceptions.MethodNotImplemented("streams cannot be had over REST")  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Let go of the connection."""
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
        """Give the responses; a call that is not streamed has one. Raises: GoogleAPICallError, RequestException."""
        answer = self._session.post(
            f"{self._base}/v1/{quote(path)}:{verb}",
            json=json_format.MessageToDict(request),
            headers=dict(metadata),
            timeout=timeout,
            max_allowed_time=timeout,
        )
        made = _list(answer)
        for each in made:
            _raise_for(each, answer.status_code)
        return [json_format.ParseDict(each, kind.pb()(), ignore_unknown_fields=True) for each in made]


def _list(answer: Any) -> list[Any]:
    try:
        made = answer.json()
    except ValueError as error:  # a proxy's page
        said = answer.text[:200] or "no answer"
        raise exceptions.from_http_status(answer.status_code, said) from error  # type: ignore[no-untyped-call]
    return made if isinstance(made, list) else [made]


def _raise_for(made: Any, http_status: int) -> None:
    """Raise what gRPC would: an HTTP status alone does not tell contention from existence."""
    trouble = made.get("error") if isinstance(made, dict) else {"message": str(made)[:200]}
    if trouble is None:
        return
    code = getattr(grpc.StatusCode, trouble.get("status", ""), None)
    message = trouble.get("message", "")
    if code is None:
        raise exceptions.from_http_status(http_status, message)  # type: ignore[no-untyped-call]
    raise exceptions.from_grpc_status(code, message)  # type: ignore[no-untyped-call]


Transport = Literal["grpc", "rest"]
Client = GrpcClient | RestClient
ClientFactory = Callable[[Address, Transport], Client]
"""Makes a client in the process that will use it."""

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.use_local_subchannel_pool", 1),
)
_LONGEST_ASKED = 3.0
"""Seconds; with the library's pauses between its tries some 6."""
_SCOPES = ("https://www.googleapis.com/auth/datastore",)


def make_client(address: Address, transport: Transport) -> Client:
    """Make a client of the emulator, if the environment names one, else of the service. Raises: StoreError."""
    if transport == "rest":
        return rest_client(address)
    return GrpcClient(grpc_channel(address))


def metadata_of(address: Address) -> Metadata:
    """Give what each call carries: its database and, for an emulator, that a server asks, who needs obey no rules."""
    database = ("google-cloud-resource-prefix", address.database_path)
    return (database, ("authorization", "Bearer owner")) if emulator() else (database,)


def grpc_channel(address: Address) -> grpc.Channel:
    """Open a channel. Raises: StoreError."""
    host = emulator()
    if host is not None:
        return grpc.insecure_channel(host, options=_OPTIONS)
    channel: grpc.Channel = FirestoreGrpcTransport.create_channel(credentials=_credentials(address), options=_OPTIONS)
    return channel


def rest_client(address: Address) -> RestClient:
    """Make a client over HTTP. Raises: StoreError."""
    host = emulator()
    credentials = _credentials(address) if host is None else AnonymousCredentials()  # type: ignore[no-untyped-call]
    session = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
    return RestClient(session, SERVICE if host is None else f"http://{host}")


def _credentials(address: Address) -> Any:
    try:
        return default_credentials(scopes=_SCOPES, request=_Hurried())[0]
    except auth_errors.DefaultCredentialsError as error:
        said = str(error).partition(". ")[0]
        raise StoreError(
            f"no credentials for {address} ({said}): run `gcloud auth application-default login`, set "
            "GOOGLE_APPLICATION_CREDENTIALS to a key file, or set FIRESTORE_EMULATOR_HOST to use an emulator"
        ) from error


class _Hurried(Request):
    """Asks a machine's metadata server for credentials, and where nothing answers, not for the 12 s of the library."""

    def __init__(self) -> None:
        super().__init__()
        self._end = time.monotonic() + _LONGEST_ASKED

    def __call__(self, *args: Any, **options: Any) -> Any:
        left = self._end - time.monotonic()
        if left <= 0:
            raise auth_errors.TransportError("no metadata server answers")  # type: ignore[no-untyped-call]
        options["timeout"] = min(options.get("timeout") or left, left)
        return super().__call__(*args, **options)  # type: ignore[no-untyped-call]
