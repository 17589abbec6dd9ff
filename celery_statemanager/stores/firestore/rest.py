"""The calls of a store over HTTP, for processes in which gRPC may not run.

Not the client library's own REST transport: it gives `Conflict` for what was there already and for what was
contended alike, puts document names into URLs unescaped, and cannot read the emulator's lists.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import grpc
from google.api_core import exceptions
from google.cloud.firestore_v1.types import firestore
from google.protobuf import json_format

from celery_statemanager.stores.firestore.rpc import Metadata

SERVICE = "https://firestore.googleapis.com"


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
