"""The OpenAPI description of the routes."""

from __future__ import annotations

from starlette.requests import Request

from celery_statemanager.web.site import Site
from celery_statemanager.web.wire import JSON


async def describe(_: Site, request: Request) -> JSON:
    """Return the description."""
    return JSON({"servers": [{"url": request.scope["outer"].get("root_path", "") or "/"}]})
