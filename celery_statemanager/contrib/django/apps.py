"""The app of Django."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks

from celery_statemanager.contrib.django.checks import check_settings


class CeleryStateManagerConfig(AppConfig):  # type: ignore[misc] # Django has no types
    """Jobs of Celery: ``INSTALLED_APPS = [..., "celery_statemanager.contrib.django"]``."""

    name = "celery_statemanager.contrib.django"
    label = "celery_statemanager"
    verbose_name = "Celery jobs"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks."""
        checks.register(check_settings)
