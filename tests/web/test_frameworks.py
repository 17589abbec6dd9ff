"""The application inside other frameworks, over ASGI and WSGI (rule R25)."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
import threading
from contextlib import contextmanager
from wsgiref.simple_server import WSGIRequestHandler, make_server

import httpx
import pytest
from django_kit import set_up_django
from web_kit import HEADERS, PATIENCE, everyone, serving

from celery_statemanager import ConfigurationError


def check(client, root=""):
    """Use the application below a mount point."""
    assert client.get(f"{root}/api/jobs/a%2Fb%20%E2%98%83").json()["jobID"] == "a/b ☃"
    assert client.get(f"{root}/").headers["content-type"].startswith("text/html")
    assert client.get(f"{root}/jobs/a%2Fb%20%E2%98%83").status_code == 200
    assert client.get(f"{root}/static/celery-job.js").status_code == 200
    assert client.get(f"{root}/api/jobs").json()["jobs"][0]["jobID"] == "a/b ☃"
    assert client.get(f"{root}/api/jobs/missing").status_code == 404
    assert client.get(f"{root}/api/openapi.json").json()["servers"] == [{"url": root or "/"}]
    body = {"reason": "lunch ☃"}
    assert client.post(f"{root}/api/jobs/a%2Fb%20%E2%98%83/pause", json=body, headers=HEADERS).json() == {
        "paused": True
    }
    assert client.head(f"{root}/api/jobs").status_code == 200


@pytest.fixture(autouse=True)
def job(submit):
    return submit("a/b ☃")


def test_fastapi_mounts_the_pages(states):
    from fastapi import FastAPI

    api = FastAPI()

    @api.get("/own")
    def own():
        return {"own": True}

    api.mount("/jobs", states.web(everyone))
    with serving(api) as client:
        check(client, "/jobs")
        assert client.get("/own").json() == {"own": True}
        assert client.get("/jobs").headers["location"].endswith("/jobs/")


def test_litestar_mounts_the_pages(states):
    from litestar import Litestar, asgi

    jobs = asgi("/jobs", is_mount=True, copy_scope=True)(states.web(everyone))
    app = Litestar(route_handlers=[jobs], logging_config=None)  # by default it configures the loggers of the process
    with serving(app) as client:
        check(client, "/jobs")
        assert client.get("/jobs").headers["location"] == "/jobs/"


@pytest.fixture
def django_settings():
    set_up_django()


def test_django_serves_the_pages_beside_its_own_over_asgi(states, django_settings):
    from django.core.asgi import get_asgi_application

    pages, jobs = get_asgi_application(), states.web(everyone)

    async def application(scope, receive, send):
        if scope["type"] == "http" and scope["path"].startswith("/jobs/"):
            await jobs({**scope, "root_path": "/jobs"}, receive, send)
        else:
            await pages(scope, receive, send)

    with serving(application) as client:
        check(client, "/jobs")


@contextmanager
def running(server):
    """Run a WSGI server in a thread, and yield a client."""
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{server.server_port}", timeout=PATIENCE, trust_env=False
        ) as client:
            yield client
    finally:
        server.shutdown()
        thread.join(PATIENCE)
        server.server_close()


@contextmanager
def wsgi_serving(app):
    """Run a WSGI application on wsgiref, which passes no raw path on."""

    class Quiet(WSGIRequestHandler):
        def log_message(self, *args):
            pass

    server = make_server("127.0.0.1", 0, app, handler_class=Quiet)
    with running(server) as client:
        yield client


@contextmanager
def werkzeug_serving(app):
    from werkzeug.serving import WSGIRequestHandler as Handler
    from werkzeug.serving import make_server as make

    class Quiet(Handler):
        def log(self, *args, **kwargs):
            pass

    server = make("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    with running(server) as client:
        yield client


def test_flask_mounts_the_pages_over_wsgi(states):
    from flask import Flask
    from werkzeug.middleware.dispatcher import DispatcherMiddleware

    app = Flask("own")
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/jobs": states.web_wsgi(everyone)})
    with werkzeug_serving(app) as client:
        check(client, "/jobs")
        ended = client.get("/jobs/api/jobs/a%2Fb%20%E2%98%83/events")
        assert (ended.status_code, ended.json()["error"]["code"]) == (404, "no_events")


def test_a_wsgi_server_without_the_raw_path_serves_names_without_a_slash(states, submit):
    submit("ä 1")
    with wsgi_serving(states.web_wsgi(everyone)) as client:
        assert client.get("/api/jobs/%C3%A4%201?text=\xff").json()["jobID"] == "ä 1"
        assert client.get("/api/jobs/a%2Fb%20%E2%98%83").status_code == 400
        assert client.get("/api/jobs/%FF").status_code == 400


def test_a_wsgi_application_works_in_forked_processes(states):
    """As with gunicorn --preload: the application has served a request before the fork."""
    script = f"""
        import os, sys
        sys.path[:0] = {sys.path!r}
        from web_kit import everyone, new_states
        app = new_states({states.settings.store_url!r}).web_wsgi(everyone)

        def status():
            from io import BytesIO
            from wsgiref.util import setup_testing_defaults
            environ, found = {{"PATH_INFO": "/api/jobs", "wsgi.input": BytesIO()}}, []
            setup_testing_defaults(environ)
            b"".join(app(environ, lambda status, headers, *rest: found.append(status)))
            return found[0]

        assert status() == "200 OK"
        if os.fork() == 0:
            os._exit(0 if status() == "200 OK" else 1)
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], timeout=PATIENCE, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("missing", ["starlette", "itsdangerous", "a2wsgi"])
def test_a_missing_library_is_named_with_the_extra(states, monkeypatch, missing):
    for name in [each for each in sys.modules if each.startswith("celery_statemanager.web")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [each for each in sys.modules if each.partition(".")[0] == missing]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigurationError, match=r'pip install "celery-statemanager\[web\]"'):
        states.web(everyone)
    monkeypatch.undo()
    importlib.import_module("celery_statemanager.web")
