"""A store in a temporary file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlite_kit import opened

from celery_statemanager.stores.sqlite import SQLiteStore
from celery_statemanager.testing.kit import PATIENCE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "states.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    with opened(path, timeout=PATIENCE) as store:
        yield store
