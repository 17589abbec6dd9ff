"""Examples that run without a server. ``celery -A examples …`` finds the app here."""

from examples.app import app, states
from examples.audit import audit

__all__ = ["app", "audit", "states"]
