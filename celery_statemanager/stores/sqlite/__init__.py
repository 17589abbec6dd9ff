"""States in one SQLite file: one machine, many processes, no server."""

from __future__ import annotations

from celery_statemanager.stores.sqlite.store import SQLiteStore

__all__ = ["SQLiteStore"]
