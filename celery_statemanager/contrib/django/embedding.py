"""An ASGI application below a URL of Django, over ASGI and WSGI."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import django
from django.http import HttpResponse, StreamingHttpResponse

LONGEST_STREAM = math.inf if django.VERSION >= (5, 0) else 60.0
"""Seconds after which a stream of events ends, so that its client connects again. Django 4.2 does not detect that a
client has disconnected."""

Message = MutableMapping[str, Any]
Application = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


async def answer(application: Application, request: Any, root_path: str, extra: dict[str, Any]) -> Any:
    """Return the application's response to a Django request.

    Args:
        root_path: the part of the request's path at which the application is mounted.
        extra: additional entries of the scope.
    """
    exchange = _Exchange(application, {**_scope_of(request, root_path), **extra}, request.body)
    start, first = await exchange.begin()
    status, headers = start["status"], start.get("headers", ())
    if hasattr(request, "scope") and first.get("more_body"):
        response: Any = StreamingHttpResponse(exchange.stream(first), status=status)
    else:
        response = HttpResponse(b"".join([part async for part in exchange.stream(first)]), status=status)
    del response["Content-Type"]
    for name, value in headers:
        response[name.decode("latin-1")] = value.decode("latin-1")
    return response


def _scope_of(request: Any, root_path: str) -> dict[str, Any]:
    """Return the scope of a request, as an ASGI server creates it."""
    meta, outer = request.META, getattr(request, "scope", {})
    names = {name: name[5:] for name in meta if name.startswith("HTTP_")}
    names |= {name: name for name in ("CONTENT_TYPE", "CONTENT_LENGTH") if meta.get(name)}
    headers = [
        (short.replace("_", "-").lower().encode("latin-1"), str(meta[name]).encode("latin-1"))
        for name, short in names.items()
    ]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.scheme,
        "path": request.path,
        "raw_path": outer.get("raw_path") or b"",
        "root_path": root_path,
        "query_string": meta.get("QUERY_STRING", "").encode("latin-1"),
        "headers": outer.get("headers", headers),
        "client": (meta.get("REMOTE_ADDR") or "", 0),
        "server": (request.META.get("SERVER_NAME", ""), int(meta.get("SERVER_PORT") or 0)),
    }
    return scope if outer else {**scope, "wsgi_environ": meta}  # then the application sends no events


class _Exchange:
    """One request to an application, which runs in a task of the current event loop."""

    def __init__(self, application: Application, scope: Message, body: bytes) -> None:
        self._messages: asyncio.Queue[Message | None] = asyncio.Queue(1)  # a slow client makes the application wait
        self._request: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        self._ended = asyncio.Event()
        self._task = asyncio.ensure_future(self._run(application, scope))

    async def begin(self) -> tuple[Message, Message]:
        """Return the start of the response and the first part of its body. Raises: what the application raises."""
        try:
            start, first = await self._messages.get(), await self._messages.get()
            if first is not None and not first.get("more_body"):
                await self._task
        except BaseException:
            self._task.cancel()
            raise
        if start is None or first is None:
            await self._task  # raises
            raise RuntimeError("the application sent no response")
        return start, first

    async def stream(self, first: Message) -> AsyncIterator[bytes]:
        """Yield the body of the response."""
        message: Message | None = first
        end = time.monotonic() + LONGEST_STREAM
        try:
            while message is not None and time.monotonic() < end:
                yield message.get("body", b"")
                message = await self._messages.get() if message.get("more_body") else None
            if message is None:
                await self._task
        finally:
            self._ended.set()
            self._task.cancel()

    async def _run(self, application: Application, scope: Message) -> None:
        try:
            await application(scope, self._receive, self._messages.put)
        finally:
            if not self._ended.is_set():
                await self._messages.put(None)

    async def _receive(self) -> Message:
        if self._request:
            return self._request.pop()
        await self._ended.wait()
        return {"type": "http.disconnect"}
