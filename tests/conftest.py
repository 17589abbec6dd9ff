"""What all tests share: how much is run."""


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run every combination, not only those that differ")
    parser.addoption("--firestore", action="store_true", help="run the Firestore store, too: minutes on its emulator")


def pytest_collection_modifyitems(config, items):
    """Leave Firestore to ``make test-firestore``, and it and what takes long to ``make test-full``."""
    if config.getoption("--full"):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    if not config.getoption("--firestore"):
        left_out += [item for item in items if "firestore" in item.nodeid]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
