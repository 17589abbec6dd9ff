"""Responses over REST, from Firestore or from a proxy in front of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from requests.exceptions import Timeout

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


def test_an_error_without_a_message_is_reported_by_its_name() -> None:
    assert "Timeout" in str(translated(Timeout(), ADDRESS))


def test_names_are_escaped_again_in_urls(server: StubServer, connection: Connection) -> None:
    parent = f"{ADDRESS.root}/jobs/a%2Fb?c#d"
    connection.read("run_query", requests.run(parent, requests.select("states")), connection.deadline())
    assert server.paths[0].endswith("/jobs/a%252Fb%3Fc%23d:runQuery")


def test_an_unknown_transport_is_rejected() -> None:
    with pytest.raises(ConfigurationError, match="'grpc' or 'rest', not 'http'"):
        open_store("firestore://some-project", transport="http")
