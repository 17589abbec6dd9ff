"""The routes, and the parts of all responses: security headers, compression, errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from celery_statemanager.integration.app import StateManager
from celery_statemanager.web import cells, control, events, jobs, openapi, pages
from celery_statemanager.web.access import Access, Authorize
from celery_statemanager.web.errors import HANDLED, WebError, on_error
from celery_statemanager.web.paths import EncodedPaths
from celery_statemanager.web.sealing import Sealer
from celery_statemanager.web.site import Site
from celery_statemanager.web.tokens import secret_of
from celery_statemanager.web.wsgi import WSGIApp

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
"""Headers of every response. Responses other than files also have ``Cache-Control: no-store``."""

Handler = Callable[[Site, Request], Awaitable[Response]]

READING: dict[str, Handler] = {
    "/": pages.index_page,
    "/jobs/{job_id}": pages.job_page,
    "/static/{name}": pages.static_file,
    "/api/openapi.json": openapi.describe,
    "/api/jobs": jobs.list_jobs,
    "/api/jobs/{job_id}": jobs.show_job,
    "/api/jobs/{job_id}/states": cells.list_states,
    "/api/jobs/{job_id}/grid": cells.show_grid,
    "/api/jobs/{job_id}/why": jobs.explain_job,
    "/api/jobs/{job_id}/events": events.stream_events,
}
CHANGING: dict[str, Handler] = {
    "/api/jobs/{job_id}/cancel": control.cancel,
    "/api/jobs/{job_id}/pause": control.pause,
    "/api/jobs/{job_id}/resume": control.resume,
    "/api/jobs/{job_id}/rerun": control.rerun,
}


def web_app(states: StateManager, authorize: Authorize, *, origins: Iterable[str] = ()) -> ASGIApp:
    """Create the ASGI application; see ``StateManager.web``. Raises: TypeError, ValueError, ConfigurationError."""
    secret = secret_of(states)
    site = Site(states, Access(authorize, secret, origins), Sealer(secret, "cursor of jobs"))
    routes: list[BaseRoute] = [
        Route(path, partial(handler, site), methods=[method])
        for method, handlers in (("GET", READING), ("POST", CHANGING))
        for path, handler in handlers.items()
    ]
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False
    app.router.default = _answer_unknown_path
    for error in HANDLED:
        app.add_exception_handler(error, on_error)
    app.add_middleware(GZipMiddleware, minimum_size=1_024, compresslevel=5)
    return SafeHeaders(EncodedPaths(app))


def wsgi_app(states: StateManager, authorize: Authorize, *, origins: Iterable[str] = ()) -> WSGIApp:
    """Create the WSGI application; see ``StateManager.web_wsgi``."""
    return WSGIApp(web_app(states, authorize, origins=origins))


async def _answer_unknown_path(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request whose path matches no route, or close a WebSocket. Raises: WebError."""
    if scope["type"] == "websocket":
        await WebSocketClose()(scope, receive, send)
        return
    path = str(scope["path"])
    if not path:
        await pages.add_slash(Request(scope))(scope, receive, send)
        return
    if path.startswith(("/jobs/", "/api/jobs/")) and not scope["has_raw_path"]:
        raise WebError(400, "name", "the server passes on no raw_path, so a job_id that contains '/' cannot be read")
    raise WebError(404, "not_found", "there is no such page")


class SafeHeaders:
    """Adds the security headers to each response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def add(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                present = {name.lower() for name, _ in headers}
                wanted = {**HEADERS, "cache-control": "no-store"}
                headers += [
                    (name.encode(), value.encode()) for name, value in wanted.items() if name.encode() not in present
                ]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, add)
