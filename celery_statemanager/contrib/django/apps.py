"""The configuration of the Django app."""

from __future__ import annotations

import hashlib

from django.apps import AppConfig
from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured

from celery_statemanager.contrib.django.checks import check_settings
from celery_statemanager.integration.settings import set_default


class CeleryStateManagerConfig(AppConfig):  # type: ignore[misc] # Django has no types
    """Jobs of Celery: ``INSTALLED_APPS = [..., "celery_statemanager.contrib.django"]``."""

    name = "celery_statemanager.contrib.django"
    label = "celery_statemanager"
    verbose_name = "Celery jobs"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks, and sign links with a key that is derived from ``SECRET_KEY``."""
        checks.register(check_settings)
        set_default("web_secret", _derived_secret)


def _derived_secret() -> str | None:
    """Return a secret that is the same in all processes of the project, or None without ``SECRET_KEY``."""
    try:
        return hashlib.sha256(f"celery_statemanager {settings.SECRET_KEY}".encode()).hexdigest()
    except ImproperlyConfigured:
        return None
