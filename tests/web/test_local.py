"""``web-state``: a server for one person, whose link works once (rule R25)."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from web_kit import HEADERS, PATIENCE, new_states

from celery_statemanager.web.local import LocalServer

ROOT = Path(__file__).parents[2]
PROJECT = """
from celery import Celery
from celery_statemanager import StateManager

app = Celery("project", broker="memory://", statemanager_store_url={url!r})
states = StateManager(app)
"""


@pytest.fixture
def server(states):
    server = LocalServer(states)
    thread = threading.Thread(target=server.run)
    thread.start()
    yield server
    server.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.fixture
def browser():
    with httpx.Client(timeout=PATIENCE, trust_env=False) as browser:
        yield browser


def test_a_link_starts_one_session_and_disappears_from_the_address(server, browser, submit):
    job = submit("a/b ☃", run_token="1 2")
    link = server.job_link(job)
    response = browser.get(link)
    assert response.status_code == 303
    location = response.headers["location"]
    assert location == "/jobs/a%2Fb%20%E2%98%83?run_token=1+2"
    cookie = response.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert response.headers["referrer-policy"] == "no-referrer"
    page = browser.get(httpx.URL(link).join(location))
    assert page.status_code == 200
    assert browser.get(httpx.URL(link).join("/api/jobs")).json()["jobs"][0]["jobID"] == "a/b ☃"
    assert browser.post(
        httpx.URL(link).join("/api/jobs/a%2Fb%20%E2%98%83/pause?run_token=1+2"), headers=HEADERS
    ).json() == {"paused": True}
    assert browser.get(link).status_code == 303  # the same browser may open it again
    with httpx.Client(trust_env=False) as other:
        again = other.get(link)
        assert again.status_code == 403
        assert "used already" in again.text
        assert other.get(httpx.URL(link).join("/api/jobs")).status_code == 403
        page = other.get(httpx.URL(link).join("/"))
        assert page.status_code == 403
        assert "open the link that the command web-state has printed" in page.text


def test_a_wrong_token_or_cookie_is_refused(server, browser):
    url = httpx.URL(server.link())
    assert browser.get(url.copy_set_param("session", "x")).status_code == 403
    assert browser.head(url).status_code == 403
    for cookie in ("statemanager=x", f"statemanager-{url.port}=x", f"statemanager-{url.port}=ä", "="):
        assert browser.get(url.join("/api/jobs"), headers={"Cookie": cookie.encode()}).status_code == 403
    assert browser.get(url).status_code == 303


@pytest.mark.parametrize("other", ['theme={"dark": true}', 'text="open', "a b=1", "[x]=1", "name=é"])
def test_cookies_of_other_servers_on_this_host_do_not_end_the_session(server, browser, other):
    url = httpx.URL(server.link())
    name, value = next(iter({**browser.get(url).cookies}.items()))
    cookies = f"{other}; {name}={value}".encode()
    with httpx.Client(timeout=PATIENCE, trust_env=False) as plain:
        assert plain.get(url.join("/api/jobs"), headers={"Cookie": cookies}).status_code == 200


def test_a_link_redirects_to_its_own_server_only(server, browser):
    url = httpx.URL(server.link())
    token = url.params["session"]
    for session in (token, "x"):
        for path in ("//evil.example/jobs", "///evil.example/jobs"):
            response = browser.get(httpx.URL(url, raw_path=f"{path}?session={session}".encode()))
            assert (response.status_code, response.headers["location"]) == (303, "/evil.example/jobs")


@pytest.mark.parametrize(
    ("host", "is_private"), [("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("0.0.0.0", False)]
)
def test_only_a_loopback_address_is_private(states, host, is_private):
    server = LocalServer(states, host)
    assert server.is_private is is_private
    assert server.link().startswith("http://127." if host != "localhost" else "http://localhost:")
    server.close()


@contextlib.contextmanager
def accepted(peer):
    """Yield this process's side of the connection with an address."""
    for number in sorted(int(each.name) for each in Path("/dev/fd").iterdir()):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as found:
            if found.getpeername() == peer:
                yield found
                return
    raise AssertionError(f"no connection with {peer}")


def test_an_answer_does_not_wait_for_the_acknowledgement_of_the_one_before(server):
    address = httpx.URL(server.link())
    with socket.create_connection((address.host, address.port), timeout=PATIENCE) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(1)
        with accepted(client.getsockname()) as connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.fixture
def project(tmp_path):
    (tmp_path / "project.py").write_text(PROJECT.format(url=f"sqlite:///{tmp_path}/states.db"))
    states = new_states(f"sqlite:///{tmp_path}/states.db")
    states.store.list_jobs()
    states.store.close()
    return tmp_path


def command(project, *arguments):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{project}", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "project", "web-state", *arguments],
        cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_the_command_prints_a_link_and_ends_on_ctrl_c(project, browser):
    with command(project, "--port", "0") as process:
        link = process.stdout.readline().strip()
        assert "works once" in process.stdout.readline()
        response = browser.get(link)
        assert response.status_code == 303
        assert browser.get(httpx.URL(link).join("/api/jobs")).json() == {"jobs": [], "cursor": None}
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert err == ""


def test_the_command_warns_about_other_machines(project, browser):
    with command(project, "--port", "0", "--host", "0.0.0.0") as process:
        assert browser.get(process.stdout.readline().strip()).status_code == 303
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    assert err == "warning: 0.0.0.0 is reachable from other machines, and the connection is not encrypted\n"


def test_the_command_reports_a_used_port(project):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with command(project, "--port", str(port)) as process:
            _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 69
    assert f"cannot listen on 127.0.0.1:{port}" in err


def test_the_command_names_the_extra_that_is_missing(project):
    (project / "uvicorn.py").write_text("raise ModuleNotFoundError('no uvicorn', name='uvicorn')")
    with command(project) as process:
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 78
    assert 'uvicorn is missing: pip install "celery-statemanager[web]"; in a checkout, pip install ".[web]"' in err
