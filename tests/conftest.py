"""What all tests share: how much is run, and what is run side by side."""

import pytest


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run every combination, not only those that differ")
    parser.addoption("--firestore", action="store_true", help="run the Firestore store, too: minutes on its emulator")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Leave Firestore to ``make test-firestore`` and ``make test-full``; keep together what shares servers."""
    if not (config.getoption("--firestore") or config.getoption("--full")):
        left_out = [item for item in items if "firestore" in item.nodeid]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if "firestore" not in item.nodeid]
    for item in items:
        group = _group(item)
        if group:
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: "integration" not in item.nodeid)


def _group(item):
    """Name the servers and workers that a test uses: each of these sets is started once, by one process."""
    place = item.callspec.params.get("place") if hasattr(item, "callspec") else None
    if place:
        return place[0]
    return next((name for name in ("firestore", "redis-cluster") if name in item.nodeid), None)
