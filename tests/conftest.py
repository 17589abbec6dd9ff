"""What all tests share: how much is run."""


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run every combination, not only those that differ")
