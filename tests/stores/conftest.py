"""One fixture over all stores. A new store is one more entry in ``FACTORIES``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from celery_statemanager import Store, open_store
from celery_statemanager.testing import StoreFactory

QUIET = (HealthCheck.too_slow, HealthCheck.data_too_large)
settings.register_profile("quick", max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=QUIET)
settings.register_profile("full", max_examples=2000, stateful_step_count=80, deadline=None, suppress_health_check=QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def memory(request: pytest.FixtureRequest) -> StoreFactory:
    return StoreFactory(lambda **options: open_store("memory://", **options), takes_clock=True)


def sqlite(request: pytest.FixtureRequest) -> StoreFactory:
    path: Path = request.getfixturevalue("tmp_path")
    url = f"sqlite:///{path / 'states.db'}"
    return StoreFactory(lambda **options: open_store(url, **options), url, takes_clock=True)


FACTORIES: dict[str, Callable[[pytest.FixtureRequest], StoreFactory]] = {"memory": memory, "sqlite": sqlite}


@pytest.fixture(params=FACTORIES)
def store_factory(request: pytest.FixtureRequest) -> StoreFactory:
    """Give what makes the store asked for, and build no other."""
    return FACTORIES[request.param](request)


@pytest.fixture
def store(store_factory: StoreFactory) -> Iterator[Store]:
    """Give an empty store."""
    with store_factory.make() as store:
        yield store


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many examples the state machines ran."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        counts = dict(report.user_properties)
        if report.when == "call" and "examples" in counts:
            terminalreporter.write_line(f"{report.nodeid}: {counts['examples']} examples, {counts['steps']} steps")
