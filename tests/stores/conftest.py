"""One fixture over all stores. A new store is one more entry in ``FACTORIES``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from celery_statemanager import open_store
from celery_statemanager.testing import StoreFactory


def memory(request: pytest.FixtureRequest) -> StoreFactory:
    return StoreFactory(lambda **options: open_store("memory://", **options), takes_clock=True)


def sqlite(request: pytest.FixtureRequest) -> StoreFactory:
    pytest.importorskip("celery_statemanager.stores.sqlite")
    path: Path = request.getfixturevalue("tmp_path")
    url = f"sqlite:///{path / 'states.db'}"
    return StoreFactory(lambda **options: open_store(url, **options), url, takes_clock=True)


FACTORIES: dict[str, Callable[[pytest.FixtureRequest], StoreFactory]] = {"memory": memory, "sqlite": sqlite}


@pytest.fixture(params=FACTORIES)
def store_factory(request: pytest.FixtureRequest) -> StoreFactory:
    """Give what makes the store asked for, and build no other."""
    return FACTORIES[request.param](request)
