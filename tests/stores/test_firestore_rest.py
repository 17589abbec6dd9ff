"""Responses over REST, from Firestore or from a proxy in front of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest
from google.api_core import exceptions
from google.auth import exceptions as auth_errors
from requests import exceptions as http_errors

from celery_statemanager import ConfigurationError, StoreError, StoreUnavailable, open_store
from celery_statemanager.records import JobKey
from celery_statemanager.stores.firestore import FirestoreAddress, requests
from celery_statemanager.stores.firestore.client import Connection
from celery_statemanager.stores.firestore.errors import PreconditionFailed, Transient, translated
from celery_statemanager.stores.firestore.transports import make_client
from celery_statemanager.testing.kit import PATIENCE

ADDRESS = FirestoreAddress("some-project")


class StubServer:
    """A server that sends the same response to every request."""

    def __init__(self) -> None:
        self.status, self.body = 200, b"[]"
        self.paths: list[str] = []
        self.released = threading.Event()
        self.released.set()

    def respond_with(self, status: int, body: Any) -> None:
        self.status, self.body = status, body if isinstance(body, bytes) else json.dumps(body).encode()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubServer]:
    stub = StubServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            stub.paths.append(self.path)
            stub.released.wait(PATIENCE)
            self.send_response(stub.status)
            self.send_header("Content-Length", str(len(stub.body)))
            self.end_headers()
            self.wfile.write(stub.body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", f"127.0.0.1:{http.server_port}")
        yield stub
        stub.released.set()
        http.shutdown()


@pytest.fixture
def connection(server: StubServer) -> Iterator[Connection]:
    connection = Connection(ADDRESS, PATIENCE, "rest", make_client)
    yield connection
    connection.close()


def commit(connection: Connection) -> None:
    connection.once("commit", requests.commit(ADDRESS.database_path, []), connection.deadline())


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (409, "ALREADY_EXISTS", PreconditionFailed),
        (409, "ABORTED", Transient),
        (400, "FAILED_PRECONDITION", PreconditionFailed),
        (404, "NOT_FOUND", PreconditionFailed),
        (429, "RESOURCE_EXHAUSTED", Transient),
        (503, "UNAVAILABLE", Transient),
        (403, "PERMISSION_DENIED", StoreError),
    ],
)
def test_errors_are_distinguished_by_more_than_the_http_status(
    server: StubServer, connection: Connection, status: int, code: str, error: type[Exception]
) -> None:
    server.respond_with(status, {"error": {"code": status, "status": code, "message": "reason"}})
    with pytest.raises(StoreError, match="reason") as caught:
        commit(connection)
    assert type(caught.value) is error


def test_an_error_inside_a_list_is_raised(server: StubServer, connection: Connection) -> None:
    server.respond_with(
        200, [{"readTime": "2026-01-01T00:00:00Z"}, {"error": {"code": 400, "status": "INVALID_ARGUMENT"}}]
    )
    with pytest.raises(StoreError, match="rejected"):
        connection.read("run_query", requests.run(ADDRESS.root, requests.select("jobs")), connection.deadline())


@pytest.mark.parametrize(("status", "error"), [(502, StoreUnavailable), (403, StoreError), (200, StoreError)])
def test_an_error_page_of_a_proxy_is_quoted_in_the_error(
    server: StubServer, connection: Connection, status: int, error: type[Exception]
) -> None:
    server.respond_with(status, b"<html>a gateway's page</html>")
    with pytest.raises(error, match="a gateway's page"):
        commit(connection)


def test_a_server_that_does_not_respond_is_abandoned_after_the_timeout(server: StubServer) -> None:
    server.released.clear()
    with open_store("firestore://some-project", timeout=0.3, transport="rest") as store:
        with pytest.raises(StoreUnavailable, match=r"did not answer.*gave up after 0\.3 s"):
            store.get_job(JobKey("job"))


GRPC = {
    grpc.StatusCode.CANCELLED: Transient,
    grpc.StatusCode.UNKNOWN: Transient,
    grpc.StatusCode.INVALID_ARGUMENT: StoreError,
    grpc.StatusCode.DEADLINE_EXCEEDED: Transient,
    grpc.StatusCode.NOT_FOUND: PreconditionFailed,
    grpc.StatusCode.ALREADY_EXISTS: PreconditionFailed,
    grpc.StatusCode.PERMISSION_DENIED: StoreError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Transient,
    grpc.StatusCode.FAILED_PRECONDITION: PreconditionFailed,
    grpc.StatusCode.ABORTED: Transient,
    grpc.StatusCode.OUT_OF_RANGE: StoreError,
    grpc.StatusCode.UNIMPLEMENTED: StoreError,
    grpc.StatusCode.INTERNAL: Transient,
    grpc.StatusCode.UNAVAILABLE: Transient,
    grpc.StatusCode.DATA_LOSS: StoreError,
    grpc.StatusCode.UNAUTHENTICATED: StoreError,
}
PASSING_STATUSES = {408, 425, 429, 499, 500, 502, 503, 504, 507, 520, 529}
LASTING_STATUSES = {301, 400, 401, 403, 405, 411, 413, 418, 451, 501, 505, 511}


@pytest.mark.parametrize(("code", "error"), GRPC.items(), ids=lambda value: getattr(value, "name", ""))
def test_each_code_of_grpc_passes_or_needs_a_correction(code: grpc.StatusCode, error: type[Exception]) -> None:
    assert {*GRPC} == {*grpc.StatusCode} - {grpc.StatusCode.OK}
    assert type(translated(exceptions.from_grpc_status(code, "reason"), ADDRESS)) is error


@pytest.mark.parametrize("status", sorted(PASSING_STATUSES | LASTING_STATUSES))
def test_each_status_of_a_proxy_passes_or_needs_a_correction(
    server: StubServer, connection: Connection, status: int
) -> None:
    server.respond_with(status, b"<html>a gateway's page</html>")
    with pytest.raises(StoreError) as caught:
        commit(connection)
    assert isinstance(caught.value, StoreUnavailable) is (status in PASSING_STATUSES)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (http_errors.ConnectionError("refused"), Transient),
        (http_errors.ReadTimeout("slow"), Transient),
        (http_errors.ChunkedEncodingError("cut off"), Transient),
        (http_errors.ProxyError("away"), Transient),
        (http_errors.SSLError("EOF occurred in violation of protocol"), Transient),
        (http_errors.SSLError("CERTIFICATE_VERIFY_FAILED"), StoreError),
        (http_errors.InvalidURL("no host"), StoreError),
        (auth_errors.TransportError("no metadata server"), Transient),
        (auth_errors.RefreshError("the token server is busy", retryable=True), Transient),
        (auth_errors.RefreshError("invalid_grant"), StoreError),
        (auth_errors.DefaultCredentialsError("no credentials"), StoreError),
        (exceptions.RetryError("gave up", None), Transient),
    ],
    ids=lambda value: str(value)[:30],
)
def test_errors_of_the_client_pass_or_need_a_correction(error: Exception, kind: type[Exception]) -> None:
    assert type(translated(error, ADDRESS)) is kind


def test_an_error_without_a_message_is_reported_by_its_name() -> None:
    assert "Timeout" in str(translated(http_errors.Timeout(), ADDRESS))


def test_names_are_escaped_again_in_urls(server: StubServer, connection: Connection) -> None:
    parent = f"{ADDRESS.root}/jobs/a%2Fb?c#d"
    connection.read("run_query", requests.run(parent, requests.select("states")), connection.deadline())
    assert server.paths[0].endswith("/jobs/a%252Fb%3Fc%23d:runQuery")


def test_an_unknown_transport_is_rejected() -> None:
    with pytest.raises(ConfigurationError, match="'grpc' or 'rest', not 'http'"):
        open_store("firestore://some-project", transport="http")
