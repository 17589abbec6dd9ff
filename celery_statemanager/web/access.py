"""Access checks: the application's ``authorize``, tokens, and the origin of requests that change a job."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from celery_statemanager.integration.submission.job import Job
from celery_statemanager.web.errors import forbidden
from celery_statemanager.web.tokens import PREFIX, Grant, read_token

Authorize = Callable[[Request, str, "Job | None"], "bool | Awaitable[bool]"]
"""Return whether a request may do an action: ``list`` without a job; ``view``, ``cancel``, ``pause``, ``rerun``."""

_BEARER = re.compile(r"bearer +(\S+)", re.IGNORECASE)
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Access:
    """Checks which requests are allowed.

    Args:
        origins: origins of pages that may send POST requests, in addition to the host of the request.
    """

    def __init__(self, authorize: Authorize, secret: str, origins: Iterable[str] = ()) -> None:
        if not callable(authorize):
            raise TypeError(f"authorize must be a function of (request, action, job), not {authorize!r:.60}")
        self._authorize: Any = authorize
        self._is_async = _is_async(authorize)
        self._secret = secret
        self._origins = frozenset(map(_checked_origin, origins))

    def grant(self, request: Request) -> Grant | None:
        """Return what the token of a request grants; None without a token. Raises: WebError – the token is invalid."""
        token = request.query_params.get("token")
        if token is None:
            bearer = _BEARER.fullmatch(request.headers.get("authorization", ""))
            if bearer is None or not bearer[1].startswith(PREFIX):
                return None
            token = bearer[1]
        try:
            return read_token(self._secret, token)
        except ValueError as error:
            raise forbidden(str(error), "token") from None

    async def require(self, request: Request, action: str, job: Job | None = None) -> None:
        """Check that a request may do an action. Raises: WebError, or what ``authorize`` raises."""
        if not (await self.allowed(request, [(action, job)]))[0]:
            what = "list jobs" if job is None else f"{action} job {job.id!r}"
            raise forbidden(f"this request may not {what}")

    async def viewable(self, request: Request, jobs: Sequence[Job]) -> list[Job]:
        """Return the jobs that a request may view."""
        answers = await self.allowed(request, [("view", job) for job in jobs])
        return [job for job, allowed in zip(jobs, answers) if allowed]

    async def allowed(self, request: Request, checks: Sequence[tuple[str, Job | None]]) -> list[bool]:
        """Return for each action and job whether a request may do it. Raises: WebError; what ``authorize`` raises."""
        grant = self.grant(request)
        granted = [
            job is not None and grant is not None and grant.allows(action, job._record) for action, job in checks
        ]
        undecided = [each for each, is_granted in zip(checks, granted) if not is_granted]
        if not undecided:
            return granted
        answers = iter(await self._call_authorize(Request(request.scope["outer"]), undecided))
        return [is_granted or next(answers) for is_granted in granted]

    async def _call_authorize(self, request: Request, checks: Sequence[tuple[str, Job | None]]) -> list[bool]:
        if self._is_async:
            return [bool(await self._authorize(request, action, job)) for action, job in checks]
        answers = await run_in_threadpool(lambda: [self._authorize(request, action, job) for action, job in checks])
        return [bool(await answer if inspect.isawaitable(answer) else answer) for answer in answers]

    def check_origin(self, request: Request) -> None:
        """Check that a request that changes something does not come from another site. Raises: WebError."""
        headers = request.headers
        if "x-requested-with" not in headers:
            raise forbidden("the header X-Requested-With is missing; send it with any value", "header")
        if headers.get("sec-fetch-site") == "cross-site":
            raise forbidden("the header Sec-Fetch-Site shows that a page of another site sent the request", "origin")
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins and not _is_same_host(origin, headers.get("host", "")):
            raise forbidden(
                "the header Origin contains another host than the header Host; if a proxy replaces Host, pass the "
                "origin of the pages as states.web(origins=[…])",
                "origin",
            )


def _is_async(authorize: Any) -> bool:
    while hasattr(authorize, "func"):
        authorize = authorize.func
    return inspect.iscoroutinefunction(authorize) or inspect.iscoroutinefunction(type(authorize).__call__)


def _checked_origin(origin: Any) -> str:
    parts = urlsplit(origin) if isinstance(origin, str) else None
    if (
        parts is None
        or parts.scheme not in _DEFAULT_PORTS
        or not parts.netloc
        or origin != f"{parts.scheme}://{parts.netloc}"
    ):
        raise ValueError(f"each of origins must be like https://example.com, not {origin!r:.60}")
    return str(origin)


def _is_same_host(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
        default = _DEFAULT_PORTS.get(parts.scheme)
        own = urlsplit(f"//{host}")
        return default is not None and (parts.hostname, parts.port or default) == (own.hostname, own.port or default)
    except ValueError:
        return False
