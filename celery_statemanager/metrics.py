"""Measurement hooks that record nothing. ``telemetry`` implements them with OpenTelemetry."""

from __future__ import annotations

from celery_statemanager.stores.capabilities import FullStore


class Metrics:
    """Hooks that record nothing. A subclass overrides them to record metrics."""

    def measured(self, store: FullStore) -> FullStore:
        """Return a store whose calls are measured."""
        return store

    def swept(self, seconds: float) -> None:
        """Record a completed sweep and its duration in seconds."""

    def published(self, latch: str) -> None:
        """Record that the callback of a latch was published."""
