"""The requests that change a job: cancel, pause, resume and rerun."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from celery_statemanager.limits import check_message, short_repr
from celery_statemanager.web.errors import WebError, bad_request
from celery_statemanager.web.site import Site
from celery_statemanager.web.wire import JSON

MOST_BYTES = 65_536
"""Maximum size of the body of a request."""

BODY_TIMEOUT = 10.0
"""Seconds within which the body of a request must arrive."""

LONGEST_REASON = 2_000


async def cancel(site: Site, request: Request) -> JSON:
    """Cancel a job."""
    reason = await _reason(site, request)
    job = await site.find(request, "cancel")
    return JSON({"cancelled": await run_in_threadpool(job.cancel, reason)})


async def pause(site: Site, request: Request) -> JSON:
    """Hold back the rows of a job that have not begun."""
    reason = await _reason(site, request)
    job = await site.find(request, "pause")
    return JSON({"paused": await run_in_threadpool(job.pause, reason)})


async def resume(site: Site, request: Request) -> JSON:
    """Publish the rows that a pause has held back."""
    await _body(site, request, set())
    job = await site.find(request, "pause")
    return JSON({"resumed": await run_in_threadpool(job.resume)})


async def rerun(site: Site, request: Request) -> JSON:
    """Rerun rows that have ended without success."""
    which = (await _body(site, request, {"which"})).get("which", "failed")
    job = await site.find(request, "rerun")
    if not isinstance(which, str):
        raise bad_request(f"which must be 'failed' or rows such as '3,17-20', not {short_repr(which)}")
    try:
        report = await run_in_threadpool(job.rerun, which)
    except (TypeError, ValueError) as error:
        raise bad_request(error) from None
    return JSON({"rows": str(report.rows), "skipped": str(report.skipped), "count": len(report.rows)})


async def _reason(site: Site, request: Request) -> str | None:
    reason = (await _body(site, request, {"reason"})).get("reason")
    if isinstance(reason, str) and len(reason) > LONGEST_REASON:
        raise bad_request(f"reason has at most {LONGEST_REASON:,} characters, not {len(reason):,}")
    try:
        return check_message(reason)
    except (TypeError, ValueError) as error:
        raise bad_request(str(error).replace("message", "reason", 1)) from None


async def _body(site: Site, request: Request, known: set[str]) -> dict[str, Any]:
    """Return the JSON object in the body of a request, empty without a body. Raises: WebError."""
    site.access.check_origin(request)
    try:
        body = await asyncio.wait_for(_read(request), BODY_TIMEOUT)
    except asyncio.TimeoutError:
        raise WebError(408, "timeout", f"the body of the request did not arrive within {BODY_TIMEOUT:.0f} s") from None
    except ClientDisconnect:
        raise WebError(400, "disconnected", "the client has disconnected") from None
    try:
        found = json.loads(body) if body else {}
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise bad_request("the body must be empty, or a JSON object in UTF-8")
    unknown = sorted({*found} - known)
    if unknown:
        allowed = ", ".join(known) or "none"
        raise bad_request(f"unknown field {short_repr(unknown[0])} in the body; known fields: {allowed}")
    return found


async def _read(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise WebError(413, "too_large", f"the body of a request has at most {MOST_BYTES:,} bytes")
    return bytes(body)
