"""The store of the guide "Write a store of your own" passes the part of the contract that each of its classes promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from celery_statemanager.testing import CoreContract, StoreContract, StoreFactory, WorkerRegistryContract
from examples.folder_store import FolderStore, FullFolderStore, SweptFolderStore


class FolderTests:
    store_class: type[FolderStore]

    @pytest.fixture
    def store_factory(self, tmp_path: Path) -> StoreFactory:
        return StoreFactory(lambda **options: self.store_class(tmp_path, **options), str(tmp_path), takes_clock=True)


class TestFolderStore(FolderTests, CoreContract):
    store_class = FolderStore


class TestSweptFolderStore(FolderTests, WorkerRegistryContract, CoreContract):
    store_class = SweptFolderStore


class TestFullFolderStore(FolderTests, StoreContract):
    store_class = FullFolderStore
