"""What Firestore, or what stands before it, may answer over REST."""

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
from celery_statemanager.stores.firestore import Address, requests
from celery_statemanager.stores.firestore.client import Connection
from celery_statemanager.stores.firestore.errors import PreconditionFailed, Transient, translated
from celery_statemanager.stores.firestore.transports import make_client
from celery_statemanager.testing.kit import PATIENCE

ADDRESS = Address("some-project")


class Answers:
    """A server that gives one answer to everything."""

    def __init__(self) -> None:
        self.status, self.body = 200, b"[]"
        self.asked: list[str] = []
        self.released = threading.Event()
        self.released.set()

    def say(self, status: int, body: Any) -> None:
        self.status, self.body = status, body if isinstance(body, bytes) else json.dumps(body).encode()


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    answers = Answers()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            answers.asked.append(self.path)
            answers.released.wait(PATIENCE)
            self.send_response(answers.status)
            self.send_header("Content-Length", str(len(answers.body)))
            self.end_headers()
            self.wfile.write(answers.body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", f"127.0.0.1:{server.server_port}")
        yield answers
        answers.released.set()
        server.shutdown()


@pytest.fixture
def connection(answers: Answers) -> Iterator[Connection]:
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
def test_errors_are_told_apart_by_more_than_the_http_status(
    answers: Answers, connection: Connection, status: int, code: str, error: type[Exception]
) -> None:
    answers.say(status, {"error": {"code": status, "status": code, "message": "said so"}})
    with pytest.raises(StoreError, match="said so") as caught:
        commit(connection)
    assert type(caught.value) is error


def test_an_error_amid_a_list_is_raised(answers: Answers, connection: Connection) -> None:
    answers.say(200, [{"readTime": "2026-01-01T00:00:00Z"}, {"error": {"code": 400, "status": "INVALID_ARGUMENT"}}])
    with pytest.raises(StoreError, match="refused"):
        connection.read("run_query", requests.run(ADDRESS.root, requests.select("jobs")), connection.deadline())


@pytest.mark.parametrize(("status", "error"), [(502, StoreUnavailable), (403, StoreError), (200, StoreError)])
def test_the_page_of_a_proxy_is_trouble_with_its_words(
    answers: Answers, connection: Connection, status: int, error: type[Exception]
) -> None:
    answers.say(status, b"<html>a gateway's page</html>")
    with pytest.raises(error, match="a gateway's page"):
        commit(connection)


def test_a_server_that_does_not_answer_is_given_up_long_before_it_does(answers: Answers) -> None:
    answers.released.clear()
    with open_store("firestore://some-project", timeout=0.3, transport="rest") as store:
        with pytest.raises(StoreUnavailable, match=r"did not answer.*gave up after 0\.3 s"):
            store.get_job(JobKey("job"))


def test_an_error_without_words_is_told_by_its_name() -> None:
    assert "Timeout" in str(translated(Timeout(), ADDRESS))


def test_names_are_escaped_once_more_in_urls(answers: Answers, connection: Connection) -> None:
    parent = f"{ADDRESS.root}/jobs/a%2Fb?c#d"
    connection.read("run_query", requests.run(parent, requests.select("states")), connection.deadline())
    assert answers.asked[0].endswith("/jobs/a%252Fb%3Fc%23d:runQuery")


def test_another_transport_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'grpc' or 'rest', not 'http'"):
        open_store("firestore://some-project", transport="http")
