"""A web application on a real server, and jobs to show."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from celery import Celery

from celery_statemanager import StateManager
from celery_statemanager.web.local import listen

PATIENCE = 30.0
SECRET = "a secret of the tests"
HEADERS = {"X-Requested-With": "test"}


def new_states(store_url: str, **settings: Any) -> StateManager:
    """Return the StateManager of a new app."""
    app = Celery(f"web-{uuid.uuid4().hex}", broker="memory://", set_as_current=False)
    app.conf.update(statemanager_store_url=store_url, statemanager_web_secret=SECRET)
    app.conf.update({f"statemanager_{name}": value for name, value in settings.items()})
    return StateManager(app)


def everyone(request: Any, action: str, job: Any) -> bool:
    """Allow everything."""
    return True


class Server:
    """A uvicorn server in a thread.

    Attributes:
        url: without a slash at its end.
    """

    def __init__(self, app: Any, **options: Any) -> None:
        self._socket = listen()
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            app, log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=1, **options
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the server and close its connections."""
        self._server.should_exit = True
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        self._socket.close()


@contextmanager
def serving(app: Any, **options: Any) -> Iterator[httpx.Client]:
    """Run an application on a free port, and yield a client with its URL."""
    server = Server(app, **options)
    try:
        with httpx.Client(base_url=server.url, timeout=PATIENCE, trust_env=False) as client:
            yield client
    finally:
        server.stop()


@dataclass
class Event:
    """One event of a stream; a comment has the name ``:``."""

    name: str
    data: Any = None
    id: str | None = None


def events_of(lines: Iterator[str]) -> Iterator[Event]:
    """Yield the events of a stream, without comments."""
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            if "event" in fields:
                yield Event(fields["event"], json.loads(fields["data"]), fields.get("id"))
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


@contextmanager
def events(client: httpx.Client, url: str, *, last_event_id: str | None = None, **params: Any) -> Iterator[Any]:
    """Open a stream of events, and yield an iterator over them."""
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    with client.stream("GET", url, params=params, headers=headers) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        yield events_of(response.iter_lines())
