"""Measurement hooks that record nothing. ``telemetry`` implements them with OpenTelemetry."""

from __future__ import annotations

from celery_statemanager.stores.base import Store


class Metrics:
    """Record nothing. A subclass records what its methods are called with."""

    def measured(self, store: Store) -> Store:
        """Return a store whose calls are measured."""
        return store

    def swept(self, seconds: float) -> None:
        """Record a completed sweep and its duration in seconds."""

    def published(self, latch: str) -> None:
        """Record a published message of the callback of a latch."""
