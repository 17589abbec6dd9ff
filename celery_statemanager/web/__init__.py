"""Pages, JSON and live events of jobs, as an ASGI or WSGI application (rule R25)."""

from __future__ import annotations

from celery_statemanager.web.app import web_app, wsgi_app
from celery_statemanager.web.tokens import web_token

__all__ = ("web_app", "web_token", "wsgi_app")
