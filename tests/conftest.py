"""Setup for all tests: which tests run, which run in one process, and the Firestore emulator."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from emulator import running

from celery_statemanager.testing.kit import is_smoke


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run every combination, not only those that differ")
    parser.addoption("--firestore", action="store_true", help="run every Firestore test, not only the smoke tests")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Deselect what was not requested; keep tests that share servers in one process."""
    deselected = [item for item in items if not _is_requested(item, config.getoption)]
    config.hook.pytest_deselected(items=deselected)
    items[:] = [item for item in items if item not in deselected]
    for item in items:
        group = _group(item)
        if group:
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: "integration" not in item.nodeid)


def pytest_collection_finish(session):
    """Fail if pytest-xdist ignores the groups: each process would start all servers and workers."""
    for item in session.items if session.config.getoption("loadgroup", default=False) else ():
        mark = item.get_closest_marker("xdist_group")
        if mark is not None and not item.nodeid.endswith(f"@{mark.args[0]}"):
            raise pytest.UsageError("pytest-xdist does not group tests with this pytest: pip install 'pytest<9.2'")


def _is_requested(item, option):
    """Return whether a test runs: on the Firestore emulator, and on the file of Django, only smoke tests usually do."""
    if option("--full"):
        return True
    if item.get_closest_marker("full") or (item.get_closest_marker("firestore") and not option("--firestore")):
        return False
    params = item.callspec.params if hasattr(item, "callspec") else {}
    store = params.get("store_factory") or params.get("store_kind") or ""
    is_usual = not store.startswith(("firestore", "django"))
    is_wanted = store.startswith("firestore") and option("--firestore")
    return is_usual or is_wanted or is_smoke(item.function)


def _group(item):
    """Return the name of the servers and workers that a test uses; one process starts each set once."""
    shared = next(
        (name for name in ("firestore-rest", "firestore", "redis-cluster", "test_size") if name in item.nodeid), None
    )
    place = item.callspec.params.get("place") if hasattr(item, "callspec") else None
    return shared or (place[0] if place else None)


@pytest.fixture(scope="session")
def emulator_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of an emulator: the one in the environment, or a new one. Tests must not stop it."""
    configured = os.environ.get("FIRESTORE_EMULATOR_HOST")
    if configured:
        yield configured
        return
    with running(tmp_path_factory.mktemp("firestore")) as emulator:
        yield emulator.host
