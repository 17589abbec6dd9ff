"""The WSGI application: JSON and pages, without events."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

from a2wsgi import ASGIMiddleware
from starlette.types import ASGIApp

Environ = dict[str, Any]


class WSGIApp:
    """Runs an ASGI application in a separate event loop, in a thread of each process that serves requests."""

    def __init__(self, app: ASGIApp) -> None:
        self._app: Any = app
        self._starting = threading.Lock()
        self._running: ASGIMiddleware | None = None
        os.register_at_fork(after_in_child=self._forget)

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            environ.get("PATH_INFO", "").encode("latin-1").decode()
        except UnicodeError:
            start_response("400 Bad Request", [("Content-Type", "text/plain")])
            return [b"the path must be percent-encoded UTF-8\n"]
        query = quote(environ.get("QUERY_STRING", ""), safe="/?=&+%-._~!$'()*,;:@", encoding="latin-1")
        prepared: Any = {**environ, "QUERY_STRING": query}
        return self._bridge()(prepared, start_response)

    def _bridge(self) -> ASGIMiddleware:
        with self._starting:
            if self._running is None:
                self._running = ASGIMiddleware(self._app)
            return self._running

    def _forget(self) -> None:
        """Forget the parent's thread, which a forked child does not have."""
        self._starting = threading.Lock()
        self._running = None
