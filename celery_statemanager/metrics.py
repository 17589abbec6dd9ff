"""What can be measured, and nothing that does: ``telemetry`` measures where OpenTelemetry is installed."""

from __future__ import annotations

from celery_statemanager.stores.capabilities import FullStore


class Metrics:
    """Takes no measure. Another may: every method is called where the thing itself happens."""

    def measured(self, store: FullStore) -> FullStore:
        """Give a store whose calls are measured."""
        return store

    def swept(self, seconds: float) -> None:
        """Note a sweep that came to its end."""

    def published(self, latch: str) -> None:
        """Note the message of a callback."""
