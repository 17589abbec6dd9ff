"""Fixtures for the tests of applications: ``pytest_plugins = ("celery_statemanager.contrib.pytest",)``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from celery_statemanager.integration.installed import all_trackers
from celery_statemanager.stores import FullStore, open_store


@pytest.fixture
def statemanager_store() -> Iterator[FullStore]:
    """Replace the stores of this process by an empty store in memory for one test, and return this store.

    After the test, each app uses its own store again. An embedded worker that the test starts uses the same store as
    the test. Other processes do not.
    """
    store = open_store("memory://")
    before = [(tracker, vars(tracker).get("store")) for tracker in all_trackers()]
    for tracker, _ in before:
        tracker.store = store
    yield store
    for tracker, earlier in before:
        if earlier is None:
            vars(tracker).pop("store", None)  # it is opened again when it is used
        else:
            tracker.store = earlier
    store.close()
