"""System checks for settings that would cause errors later, or only in production."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.core import checks
from django.db import connections

from celery_statemanager.contrib.django.store import DjangoStore
from celery_statemanager.contrib.django.tracking import current_states
from celery_statemanager.errors import ConfigurationError
from celery_statemanager.integration.settings import Settings


def check_settings(**_: Any) -> list[Any]:
    """Check the settings of the Celery app, and the database that they name."""
    try:
        url = current_states().settings.store_url
        if not url.startswith("django://"):
            return list(_check_default(url))
        store = DjangoStore.from_url(url, timeout=1.0)
    except ConfigurationError as error:
        return [checks.Error(str(error), id="celery_statemanager.E001")]
    return list(_check_database(store.alias))


def _check_default(url: str) -> Iterator[Any]:
    """Check that a store was chosen."""
    if url == Settings.store_url:
        yield checks.Warning(
            f"no store is set, so states are kept in {url}, in the working directory of each process",
            hint="Set CELERY_STATEMANAGER_STORE_URL to 'django://default' to keep them in your database.",
            id="celery_statemanager.W001",
        )


def _check_database(alias: str) -> Iterator[Any]:
    """Check how the application uses the database of the store."""
    settings = connections[alias].settings_dict
    mode = str((settings.get("OPTIONS") or {}).get("transaction_mode", ""))
    if connections[alias].vendor == "sqlite" and mode.upper() != "IMMEDIATE":
        yield checks.Warning(
            f"a transaction on {alias!r} that reads before it writes fails with 'database is locked' if a worker "
            "writes a state in between",
            hint="Use Django 5.1 or later, and set OPTIONS to {'transaction_mode': 'IMMEDIATE'}, or use PostgreSQL.",
            id="celery_statemanager.W002",
        )
    if settings.get("ATOMIC_REQUESTS"):
        yield checks.Info(
            f"ATOMIC_REQUESTS is set, so each view runs in a transaction on {alias!r}",
            hint=f"Submit jobs with states.submit(…, using={alias!r}), so that their tasks begin after the commit.",
            id="celery_statemanager.I001",
        )
