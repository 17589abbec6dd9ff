"""Setup for unit tests: a store with a clock of the test, and how many examples the property tests try.

``HYPOTHESIS_PROFILE=full`` tries more.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from celery_statemanager.stores.memory import MemoryStore
from celery_statemanager.testing import FakeClock

settings.register_profile("quick-unit", max_examples=100, deadline=None)
settings.register_profile("full-unit", max_examples=3000, deadline=None)
settings.load_profile(f"{os.environ.get('HYPOTHESIS_PROFILE', 'quick')}-unit")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock)
