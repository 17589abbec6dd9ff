"""The path of a request below the mount point, still percent-encoded, so that a job id may contain ``/``."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

_LONGEST = 4_000
"""Maximum length of an encoded segment; a name of 200 characters needs at most 2,400."""


class EncodedPaths:
    """Lets an application route by the encoded path: its ``path`` is the part of the URL below the mount point.

    Servers and frameworks differ in what ``path``, ``raw_path`` and ``root_path`` contain. The encoded path is the end
    of ``raw_path`` that decodes to the path below the mount point.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            root, path = scope.get("root_path", ""), scope["path"]
            below = path.removeprefix(root) if path == root or path.startswith(root + "/") else path
            raw = _raw_path_of(scope)
            encoded = encoded_end(raw, below)
            if encoded is None and below.endswith("/"):  # Litestar appends a slash to the path
                encoded = encoded_end(raw, below[:-1])
            is_known = encoded is not None
            path = quote(below, safe="/") if encoded is None else encoded
            mount = root or unquote(raw[: len(raw) - len(path)] if is_known else "")
            scope = {**scope, "path": path, "root_path": "", "outer": scope, "mount": mount, "has_raw_path": is_known}
        await self._app(scope, receive, send)


def _raw_path_of(scope: Scope) -> str:
    """Return the encoded path of a request without its query, also over WSGI; empty if the server does not send it."""
    raw: bytes | None = scope.get("raw_path")
    if raw:
        return raw.partition(b"?")[0].decode("latin-1")
    environ = scope.get("wsgi_environ") or {}
    uri = str(environ.get("RAW_URI") or environ.get("REQUEST_URI") or "")
    return (uri if uri.startswith("/") else urlsplit(uri).path).partition("?")[0]


def encoded_end(raw: str, path: str) -> str | None:
    """Return the end of an encoded path that decodes to ``path``; None if there is none."""
    if not raw or not path:
        return "" if raw else None
    ends = (raw[slash.start() :] for slash in re.finditer("/", raw))
    return next((end for end in ends if unquote(end) == path), None)


def name_of(segment: str) -> str:
    """Return a name from a path segment. Raises: ValueError – it is not UTF-8."""
    if len(segment) > _LONGEST:
        raise ValueError(f"job_id has at most 200 characters; this path segment has {len(segment)}")
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise ValueError("job_id must be percent-encoded UTF-8") from None


def is_api(request: Request) -> bool:
    """Return whether a request expects JSON."""
    return str(request.scope["path"]).startswith("/api")


def relative_root(request: Request) -> str:
    """Return the relative URL of the mount point."""
    return "../" * max(0, str(request.scope["path"]).count("/") - 1) or "./"
