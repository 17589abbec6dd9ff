"""Access to jobs, decided by the request and the permissions of Django."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.utils.module_loading import import_string

from celery_statemanager.contrib.django.tracking import current_states
from celery_statemanager.errors import ConfigurationError

Authorize = Callable[[Any, str, Any], bool]
"""Return whether a request of Django may do an action: ``list``, ``view``, ``cancel``, ``pause`` or ``rerun``."""

SCOPE_KEY = "celery_statemanager.django"
"""The key of the ASGI scope that contains the request of Django."""


def may(request: Any, action: str) -> bool:
    """Return whether a user of the admin has the permission for an action."""
    name = "view" if action == "list" else action
    return bool(request.user.is_active and request.user.is_staff) and bool(
        request.user.has_perm(f"celery_statemanager.{name}_job")
    )


def by_permission(request: Any, action: str, _job: Any) -> bool:
    """Return whether the permissions of a user of the admin allow an action."""
    return may(request, action)


def staff_only(request: Any, action: str, _job: Any) -> bool:
    """Allow all staff users to view jobs. Require the permissions of the admin for other actions."""
    if action in {"list", "view"}:
        return bool(request.user.is_active and request.user.is_staff)
    return may(request, action)


def configured(request: Any, action: str, job: Any) -> bool:
    """Call the function that the setting ``web_authorize`` names, or ``staff_only`` without one."""
    return bool(_configured_function()(request, action, job))


def _configured_function() -> Authorize:
    chosen: Any = current_states().settings.web_authorize
    if chosen is None:
        return staff_only
    if isinstance(chosen, str):
        try:
            chosen = import_string(chosen)
        except ImportError as error:
            raise ConfigurationError(f"cannot import statemanager_web_authorize = {chosen!r}: {error}") from error
    if not callable(chosen):
        raise ConfigurationError("statemanager_web_authorize must be a function of (request, action, job), or its path")
    authorize: Authorize = chosen
    return authorize


def asynchronous(authorize: Authorize) -> Callable[[Any, str, Any], Awaitable[bool]]:
    """Return a function for ``StateManager.web``. It calls ``authorize`` in the thread of Django's connections."""
    call = sync_to_async(authorize)

    async def decide(request: Any, action: str, job: Any) -> bool:
        return bool(await call(request.scope[SCOPE_KEY], action, job))

    return decide
