"""The pages, and the files that they use."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from functools import lru_cache
from mimetypes import guess_type
from pathlib import Path
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from celery_statemanager.errors import StoreUnavailable
from celery_statemanager.web.errors import WebError
from celery_statemanager.web.site import Site

STATIC = Path(__file__).parent / "static"
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+")


async def index_page(site: Site, request: Request) -> Response:
    """Return the page of all jobs."""
    await site.access.require(request, "list")
    return _file(request, "index.html")


async def job_page(site: Site, request: Request) -> Response:
    """Return the page of one job, also while the store is unavailable."""
    with suppress(StoreUnavailable):
        await site.find(request)
    return _file(request, "job.html")


async def static_file(_: Site, request: Request) -> Response:
    """Return a packaged file."""
    return _file(request, request.path_params["name"])


def add_slash(request: Request) -> Response:
    """Redirect from the mount point to the page of all jobs. The relative URLs of this page need the slash."""
    query = f"?{request.url.query}" if request.url.query else ""
    return RedirectResponse(f"{quote(request.scope['mount'])}/{query}", 307)


def _file(request: Request, name: str) -> Response:
    path = STATIC / name
    if not _NAME.fullmatch(name) or not path.is_file():
        raise WebError(404, "not_found", "there is no such file")
    status = path.stat()
    content, etag = _read(path, status.st_mtime_ns, status.st_size)
    headers = {"Cache-Control": "no-cache", "ETag": etag}
    known = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
    if etag in known:
        return Response(status_code=304, headers=headers)
    kind = "text/javascript" if name.endswith(".js") else guess_type(name)[0] or "application/octet-stream"
    return Response(content, headers=headers, media_type=kind)


@lru_cache(maxsize=64)
def _read(path: Path, *_version: int) -> tuple[bytes, str]:
    """Return a file and its entity tag. ``_version`` changes when the file was written."""
    content = path.read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:20]}"'
