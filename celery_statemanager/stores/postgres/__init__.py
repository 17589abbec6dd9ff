"""The store in a PostgreSQL database. Requires the extra ``postgres``."""

from __future__ import annotations

from celery_statemanager.stores.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
