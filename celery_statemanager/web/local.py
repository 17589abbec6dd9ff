"""A server on this machine. A link with a one-time token starts the session of a browser."""

from __future__ import annotations

import ipaddress
import secrets
import socket
from urllib.parse import parse_qsl, quote, urlencode

import uvicorn
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from celery_statemanager.integration.app import StateManager
from celery_statemanager.integration.submission.job import Job
from celery_statemanager.web.app import SafeHeaders, web_app

PARAMETER = "session"
"""The parameter of a link that holds its one-time token."""

_NO_SESSION = "this browser has no session: open the link that the command web-state has printed"
_USED = "This link was used already, or belongs to an earlier run of the server. Restart the server for a new link.\n"


class Sessions:
    """Exchanges one-time tokens for a session cookie. Requests with this cookie may do everything.

    The name of the cookie contains the port, because browsers send the cookies of a host to all its ports. A browser
    sends it also when a page of another site, such as a terminal in a browser, has opened the link. Requests that
    change something are protected by the header that they need.
    """

    def __init__(self, states: StateManager, port: int) -> None:
        self._app = web_app(states, self._may)
        self._cookie = f"statemanager-{port}"
        self._value = secrets.token_urlsafe()
        self._unused: set[str] = set()

    def new_token(self) -> str:
        """Return a token that starts one session."""
        token = secrets.token_urlsafe()
        self._unused.add(token)
        return token

    async def _may(self, request: Request, action: str, _: Job | None) -> bool:
        if action == "list" and not self.has_session(request):
            raise HTTPException(403, _NO_SESSION)
        return self.has_session(request)

    def has_session(self, request: Request) -> bool:
        """Return whether a request has the cookie."""
        return secrets.compare_digest(request.cookies.get(self._cookie, "").encode(), self._value.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app: ASGIApp = self._app
        if scope["type"] == "http":
            request = Request(scope)
            if PARAMETER in request.query_params:
                app = SafeHeaders(self._exchange(request))
        await app(scope, receive, send)

    def _exchange(self, request: Request) -> Response:
        """Redirect to the URL without the token, with the cookie if the token is unused."""
        token = request.query_params[PARAMETER]
        is_unused = request.method == "GET" and token in self._unused
        if not is_unused and not self.has_session(request):
            return PlainTextResponse(_USED, 403)
        query = [each for each in parse_qsl(request.url.query, keep_blank_values=True) if each[0] != PARAMETER]
        path = request.scope.get("raw_path", b"/").partition(b"?")[0].decode("latin-1")
        location = "/" + path.lstrip("/")  # two slashes would begin the name of another host
        response = RedirectResponse(location + (f"?{urlencode(query)}" if query else ""), 303)
        if is_unused:
            self._unused.discard(token)
            response.set_cookie(self._cookie, self._value, httponly=True, samesite="lax")
        return response


def listen(host: str = "127.0.0.1", port: int = 0, backlog: int | None = None) -> socket.socket:
    """Create the socket of a server. Raises: OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=backlog)
    # asyncio sets this option only where the socket names its protocol; without it an answer waits for 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


class LocalServer:
    """Serves the pages of all jobs to each browser that has opened a link.

    Raises: OSError – from the constructor, if the address cannot be used; ConfigurationError.
    """

    def __init__(self, states: StateManager, host: str = "127.0.0.1", port: int = 0) -> None:
        states.store  # noqa: B018 - reports an invalid setting before the server starts
        self._socket = listen(host, port)
        self._host, self._port = host, self._socket.getsockname()[1]

        self._sessions = Sessions(states, self._port)
        config = uvicorn.Config(
            self._sessions,
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
            ws="none",
        )
        self._server = uvicorn.Server(config)

    @property
    def is_private(self) -> bool:
        """Whether the server is reachable from this machine only."""
        if self._host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self._host).is_loopback
        except ValueError:
            return False

    def link(self, path: str = "/") -> str:
        """Return a link that starts one session. ``path`` is percent-encoded."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104 - is compared, not bound
        return f"http://{host}:{self._port}{path}?{PARAMETER}={self._sessions.new_token()}"

    def job_link(self, job: Job) -> str:
        """Return a link to the page of a job."""
        link = self.link(f"/jobs/{quote(job.id, safe='')}")
        return link if job.run_token is None else f"{link}&{urlencode({'run_token': job.run_token})}"

    def run(self) -> None:
        """Serve until Ctrl-C, SIGTERM or ``stop``."""
        with self._socket:
            self._server.run([self._socket])

    def stop(self) -> None:
        """End a ``run`` that another thread has called."""
        self._server.should_exit = True

    def close(self) -> None:
        """Release the address, if ``run`` is never called."""
        self._socket.close()
