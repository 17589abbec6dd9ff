"""The number of property test examples (``HYPOTHESIS_PROFILE=full`` runs more), and a worker without messages."""

from __future__ import annotations

import os
import weakref

import pytest
from celery.worker import state as worker_state
from hypothesis import settings

from celery_statemanager.integration import requests

settings.register_profile("quick-unit", max_examples=100, deadline=None)
settings.register_profile("full-unit", max_examples=3000, deadline=None)
settings.load_profile(f"{os.environ.get('HYPOTHESIS_PROFILE', 'quick')}-unit")


@pytest.fixture
def holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin without the messages of earlier tests: those in reference cycles are held until garbage is collected."""
    monkeypatch.setattr(worker_state, "active_requests", weakref.WeakSet())
    monkeypatch.setattr(requests, "_received", weakref.WeakValueDictionary())
    monkeypatch.setattr(requests, "_repeated", {})
    monkeypatch.setattr(requests, "_cells", weakref.WeakKeyDictionary())
    monkeypatch.setattr(requests, "_forgotten", weakref.WeakSet())
