"""The pages, JSON and events of jobs as a view of Django."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from django.conf import settings

from celery_statemanager.contrib.django import access
from celery_statemanager.contrib.django.embedding import answer
from celery_statemanager.contrib.django.tracking import current_states
from celery_statemanager.integration.app import StateManager


async def jobs(request: Any, path: str = "") -> Any:
    """Answer a request to the pages of jobs. The setting ``web_authorize`` decides who may see them."""
    return await serve(request, path, access.configured)


def without_csrf_token(view: Any) -> Any:
    """Exempt a view from Django's check. The application checks a header and the origin of requests that change a job.

    The decorator ``csrf_exempt`` of Django 4.2 cannot be used with asynchronous views.
    """
    view.csrf_exempt = True
    return view


without_csrf_token(jobs)


async def serve(request: Any, path: str, authorize: access.Authorize) -> Any:
    """Answer a request to the pages of jobs.

    Args:
        path: the part of the request's path after the URL of the pages.
    """
    root = request.path[: len(request.path) - len(path)].removesuffix("/")
    return await answer(_application(current_states(), authorize), request, root, {access.SCOPE_KEY: request})


@lru_cache(maxsize=8)
def _application(states: StateManager, authorize: access.Authorize) -> Any:
    origins = [origin for origin in settings.CSRF_TRUSTED_ORIGINS if "*" not in origin]
    return states.web(access.asynchronous(authorize), origins=origins)
