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
            encoded = encoded_end(scope.get("raw_path") or _raw_path_of(scope.get("wsgi_environ")), below)
            is_known = encoded is not None
            path = quote(below, safe="/") if encoded is None else encoded
            scope = {**scope, "path": path, "root_path": "", "outer": scope, "has_raw_path": is_known}
        await self._app(scope, receive, send)


def _raw_path_of(environ: dict[str, str] | None) -> bytes | None:
    """Return the encoded path from the variables that WSGI servers add to the standard ones, if they do."""
    uri = (environ or {}).get("RAW_URI") or (environ or {}).get("REQUEST_URI")
    if not uri:
        return None
    return (uri if uri.startswith("/") else urlsplit(uri).path).encode("latin-1", "replace")


def encoded_end(raw_path: bytes | None, path: str) -> str | None:
    """Return the end of an encoded path that decodes to ``path``; None if there is none."""
    if not raw_path:
        return None
    raw = raw_path.partition(b"?")[0].decode("latin-1")
    if not path:
        return "" if raw else None
    for slash in re.finditer("/", raw):
        end = raw[slash.start() :]
        if unquote(end) == path:
            return end
    return None


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
