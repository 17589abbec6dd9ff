"""The contract, held against every store of this package."""

from __future__ import annotations

from celery_statemanager.testing import StoreContract


class TestStore(StoreContract):
    """Runs once for each store of ``conftest.FACTORIES``."""
