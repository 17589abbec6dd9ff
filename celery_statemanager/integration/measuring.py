"""Whether an app is measured."""

from __future__ import annotations

import importlib.util

from celery_statemanager.metrics import Metrics


def find_metrics(*, wanted: bool) -> Metrics:
    """Give what measures, if it is wanted and ``opentelemetry-api`` is installed; nothing of it is loaded else."""
    if not wanted or importlib.util.find_spec("opentelemetry") is None:
        return Metrics()
    try:
        from celery_statemanager.telemetry import OpenTelemetry
    except ImportError:  # another distribution of the same namespace
        return Metrics()
    return OpenTelemetry()
