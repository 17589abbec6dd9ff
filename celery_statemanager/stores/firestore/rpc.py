"""The calls of a store over gRPC.

Not the generated client: it wraps each message twice and passes each call through an interceptor, a tenth of a
write's processor time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import grpc
from google.api_core import exceptions
from google.api_core.gapic_v1 import client_info, routing_header
from google.cloud.firestore_v1.types import firestore

Metadata = tuple[tuple[str, str], ...]

_SERVICE = "/google.firestore.v1.Firestore"
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
    return make(f"{_SERVICE}/{name}", request.pb().SerializeToString, response.pb().FromString)


@lru_cache(maxsize=1_000)
def _with_route(metadata: Metadata, **field: str) -> Metadata:
    """Add what the service routes a call by, and what it counts clients by."""
    return (*metadata, routing_header.to_grpc_metadata(field), _ABOUT_US)  # type: ignore[no-untyped-call]


def _all(call: Any) -> list[Any]:
    return list(Responses(call))


def _named(error: grpc.RpcError) -> Exception:
    named: Exception = exceptions.from_grpc_error(error)  # type: ignore[no-untyped-call]
    return named
