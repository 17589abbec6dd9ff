"""The store in one SQLite file: for one machine and many processes, without a server."""

from __future__ import annotations

from celery_statemanager.stores.sqlite.store import SQLiteStore

__all__ = ["SQLiteStore"]
