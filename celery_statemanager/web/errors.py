"""Errors as JSON or as a page, and the HTTP status of errors of stores and of requests."""

from __future__ import annotations

import html
import logging
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from celery_statemanager.errors import (
    ConfigurationError,
    JobNotFound,
    StoreContended,
    StoreError,
    StoreUnavailable,
    SubscriptionLost,
)
from celery_statemanager.web.paths import is_api, relative_root
from celery_statemanager.web.wire import JSON

logger = logging.getLogger("celery_statemanager.web")

UNREACHABLE = "the store cannot be reached; the log of the server has the reason"

RETRY_AFTER = 5
"""Seconds after which a client may try again while the store is unavailable."""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><link rel="icon" href="data:,"><link rel="stylesheet" href="{root}static/page.css"></head>
<body><main><h1>{title}</h1><p>{message}</p>{similar}<p><a href="{root}">All jobs</a></p></main></body></html>
"""


class WebError(Exception):
    """A request that is rejected.

    Args:
        code: one word for programs.
        extra: further fields of the JSON object ``error``.
    """

    def __init__(self, status: int, code: str, message: str, *, retry_after: int = 0, **extra: Any) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message
        self.extra = extra
        self.headers = {"Retry-After": str(retry_after)} if retry_after else {}


def bad_request(error: Exception | str, code: str = "invalid") -> WebError:
    """Return the error for an invalid parameter, with status 400."""
    return WebError(400, code, str(error))


def forbidden(message: str, code: str = "forbidden") -> WebError:
    """Return the error for a request that is not allowed, with status 403."""
    return WebError(403, code, message)


def public_message(error: Exception) -> str:
    """Log an error of the store or of the settings, which may name addresses. Return what every client may know."""
    logger.warning("cannot answer a request: %s", error)
    if isinstance(error, StoreContended):
        return "other writers changed the job at the same time; try again"
    if isinstance(error, (StoreUnavailable, SubscriptionLost)):
        return UNREACHABLE
    if isinstance(error, ConfigurationError):
        return "a setting of the server is invalid; its log has the reason"
    return "the store failed to answer; the log of the server has the reason"


async def on_error(request: Request, error: Exception) -> Response:
    """Return the response to a request that has failed."""
    known = _web_error_of(error)
    if isinstance(error, HTTPException) and error.status_code in {204, 304}:
        return Response(status_code=error.status_code, headers=error.headers)
    if is_api(request):
        body = {"error": {"code": known.code, "message": known.message, **known.extra}}
        return JSON(body, status_code=known.status, headers=known.headers)
    root, title = relative_root(request), _phrase(known.status)
    similar = _similar(known.extra.get("nearest") or [], root, request.query_params.get("token"))
    page = _PAGE.format(root=root, title=html.escape(title), message=html.escape(known.message), similar=similar)
    return HTMLResponse(page, status_code=known.status, headers=known.headers)


def _phrase(status: int) -> str:
    """Return the standard phrase of a status; ``Error`` if it has none."""
    return HTTPStatus(status).phrase if status in {*HTTPStatus} else "Error"


def _similar(jobs: list[dict[str, str | None]], root: str, token: str | None) -> str:
    """Return a list of links to jobs as HTML."""
    items = []
    for each in jobs:
        query = urlencode(
            [(name, value) for name, value in (("run_token", each["runToken"]), ("token", token)) if value]
        )
        link = f"{root}jobs/{quote(str(each['jobID']), safe='')}" + (f"?{query}" if query else "")
        name = str(each["jobID"]) + (f" ({each['runToken']})" if each["runToken"] else "")
        items.append(f'<li><a href="{html.escape(link)}">{html.escape(name)}</a></li>')
    return f'<h2>Jobs with similar names</h2><ul class="similar">{"".join(items)}</ul>' if items else ""


def _web_error_of(error: Exception) -> WebError:
    if isinstance(error, WebError):
        return error
    if isinstance(error, HTTPException):
        phrase = _phrase(error.status_code)
        found = WebError(error.status_code, phrase.lower().replace(" ", "_"), str(error.detail or phrase))
        found.headers = dict(error.headers or {})
        return found
    if isinstance(error, JobNotFound):
        return WebError(404, "no_job", str(error))
    if isinstance(error, StoreContended):
        return WebError(409, "contended", public_message(error), retry_after=RETRY_AFTER)
    if isinstance(error, StoreUnavailable):
        return WebError(503, "unavailable", public_message(error), retry_after=RETRY_AFTER)
    if isinstance(error, (StoreError, ConfigurationError)):
        return WebError(500, "store" if isinstance(error, StoreError) else "configuration", public_message(error))
    return WebError(500, "internal", "an internal error occurred; the log of the server contains the traceback")


HANDLED = (
    WebError, HTTPException, JobNotFound, StoreContended, StoreUnavailable, StoreError, ConfigurationError, Exception,
)  # fmt: skip
"""The classes of errors that ``on_error`` answers."""
